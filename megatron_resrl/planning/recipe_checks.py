"""What must be right of a recipe, and of the options beside it, to plan it."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_resrl.checks.facts import RunFacts
from megatron_resrl.config.problems import Problem
from megatron_resrl.planning.options import PlanOptions
from megatron_resrl.planning.stages import STAGE_OPTIONS, STAGES_TO_PLAN


def problems_of(facts: RunFacts) -> list[Problem]:
    """Everything that is wrong with a recipe whatever the machine; notes and what this machine
    lacks are left out.

    Args:
        facts: Gathered for a machine with CUDA.
    """
    checks = STAGES_TO_PLAN[type(facts.recipe)].checks
    return [problem for check in checks for problem in check(facts) if problem.kind == "recipe"]


def check_options(facts: RunFacts, options: PlanOptions) -> Iterator[Problem]:
    """Whether the stage of the recipe has the options that are given."""
    for name in sorted(STAGE_OPTIONS - STAGES_TO_PLAN[type(facts.recipe)].options):
        value = getattr(options, name)
        if value is not None:
            problem = f"a plan of --stage {options.stage} does not depend on it"
            yield Problem(f"--{name}", value, problem, "leave it out")
