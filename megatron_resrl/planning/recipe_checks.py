"""What must be right of a recipe to plan it: model, layout and precision, but no file besides
config.json."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_resrl.checks.experts import EXPERT_CHECKS
from megatron_resrl.checks.facts import Check, Facts
from megatron_resrl.checks.model import MODEL_CHECKS, RESPONSE_CHECKS
from megatron_resrl.checks.parallel import PARALLEL_CHECKS, TRAINING_BATCH_CHECKS
from megatron_resrl.checks.passthrough import check_passthrough
from megatron_resrl.checks.precision import PRECISION_CHECKS
from megatron_resrl.checks.values import check_ranges
from megatron_resrl.checks.vllm import VLLM_CHECKS
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import VllmConfig


def _check_cpu_only(vllm: VllmConfig) -> Iterator[Problem]:
    fix = "leave it out; a plan is for GPUs"
    for name, value in vllm.environment.items():
        if name.startswith("VLLM_CPU_"):
            yield Problem(f"vllm.environment.{name}", value, "only vLLM on a CPU reads it", fix)
    for name, value in vllm.arguments.items():
        if name.lstrip("-") == "device" and value == "cpu":
            yield Problem(f"vllm.arguments.{name}", value, "it keeps vLLM off the GPUs", fix)


PLAN_CHECKS: tuple[Check, ...] = (
    check_ranges,
    *MODEL_CHECKS,
    *RESPONSE_CHECKS,
    *PARALLEL_CHECKS,
    *TRAINING_BATCH_CHECKS,
    *EXPERT_CHECKS,
    *PRECISION_CHECKS,
    *VLLM_CHECKS,
    lambda facts: _check_cpu_only(facts.recipe.vllm),
    check_passthrough,
)


def problems_of(facts: Facts) -> list[Problem]:
    """Everything that is wrong with a recipe whatever the machine; notes and what this machine
    lacks are left out.

    Args:
        facts: Gathered for a machine with CUDA.
    """
    return [
        problem for check in PLAN_CHECKS for problem in check(facts) if problem.kind == "recipe"
    ]
