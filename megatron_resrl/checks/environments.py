"""What answers the policy between its turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from megatron_resrl.checks.facts import Check
from megatron_resrl.config.problems import Kind, Problem
from megatron_resrl.config.schema_rollout import RolloutConfig
from megatron_resrl.errors import SettingError
from megatron_resrl.evaluation.sets import SetSettings
from megatron_resrl.rollout.environments.packages import MissingPackage
from megatron_resrl.rollout.environments.registry import get_environment


def _check_sets(environment: str | None, sets: Sequence[SetSettings]) -> Iterator[Problem]:
    """A run has one environment, in which all its sets are asked."""
    for each in sets:
        if each.environment is not None and each.environment != environment:
            problem = f"its tasks need rollout.environment {each.environment}"
            fix = f"set that, and evaluate {each.name} in a run of its own"
            yield Problem(each.setting, each.name, problem, fix)
    needed = {each.environment for each in sets if each.environment is not None}
    others = [each for each in sets if each.environment is None]
    if others and environment in needed:
        problem = f"its questions would be tasks of rollout.environment {environment}"
        fix = "evaluate it in a run of its own"
        yield Problem(others[0].setting, others[0].name, problem, fix)


def _check_environment(rollout: RolloutConfig) -> Iterator[Problem]:
    if rollout.environment is None:
        if rollout.environment_options:
            problem = "rollout.environment is not set, and only an environment takes options"
            fix = "set rollout.environment, or remove the options"
            yield Problem("rollout.environment_options", rollout.environment_options, problem, fix)
        return
    try:
        get_environment(rollout.environment, rollout.environment_options)
    except SettingError as error:
        kind: Kind = "machine" if isinstance(error.__cause__, MissingPackage) else "recipe"
        yield replace(Problem.of(error), kind=kind)


ENVIRONMENT_CHECKS: tuple[Check, ...] = (
    lambda facts: _check_environment(facts.recipe.rollout),
    lambda facts: _check_sets(facts.recipe.rollout.environment, facts.evaluation_sets[0]),
)
