"""What answers the policy between its turns."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_resrl.checks.facts import Check
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema_rollout import RolloutConfig
from megatron_resrl.errors import SettingError
from megatron_resrl.rollout.environments.registry import get_environment


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
        yield Problem.of(error)


ENVIRONMENT_CHECKS: tuple[Check, ...] = (lambda facts: _check_environment(facts.recipe.rollout),)
