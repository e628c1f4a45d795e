"""How a step's rollouts are collected: over-long responses, recording and replay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_resrl.checks.facts import Check
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import RewardConfig
from megatron_resrl.config.schema_questions import FileEntry
from megatron_resrl.config.schema_rollout import RolloutConfig
from megatron_resrl.errors import RunError


def _check_overlong(reward: RewardConfig, limit: int) -> Iterator[Problem]:
    if reward.overlong == "penalize" and reward.overlong_buffer >= limit:
        problem = f"not shorter than rollout.max_response_length, which is {limit}"
        fix = f"use fewer tokens, e.g. {max(1, limit // 4)}"
        yield Problem("reward.overlong_buffer", reward.overlong_buffer, problem, fix)


def _check_dynamic_sampling(rollout: RolloutConfig) -> Iterator[Problem]:
    if rollout.dynamic_sampling and rollout.max_refills == 0:
        problem = "rollout.dynamic_sampling is on, and groups without signal cannot be replaced"
        fix = "allow at least 1, or set rollout.dynamic_sampling to false"
        yield Problem("rollout.max_refills", 0, problem, fix)


def _check_record(rollout: RolloutConfig) -> Iterator[Problem]:
    if rollout.record is None:
        return
    if rollout.replay is not None:
        problem = "rollout.replay is set, too, and replayed rollouts are recorded already"
        fix = "set rollout.record or rollout.replay to null"
        yield Problem("rollout.record", rollout.record, problem, fix)
    if Path(rollout.record).exists() and not Path(rollout.record).is_dir():
        yield Problem("rollout.record", rollout.record, "it is a file", "give a directory")


def _check_replay(
    rollout: RolloutConfig, evaluated: tuple[FileEntry, ...], last_step: int
) -> Iterator[Problem]:
    directory = rollout.replay
    if directory is None:
        return
    if rollout.engine != "megatron" and evaluated:
        problem = "evaluations generate, and with rollout.replay no engine is started"
        fix = (
            "set it and evaluation.suites to [] or use rollout.engine megatron, where the policy "
            "itself decodes"
        )
        yield Problem("evaluation.files", evaluated, problem, fix)
    # Here, because torch takes a second to import, which `--help` need not wait for.
    from megatron_resrl.rollout.recording import Recording, sampling_settings

    recording = Recording(directory)
    steps = recording.steps()
    if not steps:
        fix = "give a directory that rollout.record has written"
        yield Problem("rollout.replay", directory, "there are no recorded steps", fix)
        return
    # A recording may begin after step 1 if the run does, too; the run itself finds that out.
    missing = sorted(set(range(steps[0], last_step + 1)) - set(steps))
    if missing:
        problem = f"step {missing[0]} is not recorded ({len(missing)} of {last_step} are not)"
        fix = f"set steps to {missing[0] - 1} or give a longer recording"
        yield Problem("rollout.replay", directory, problem, fix)
    try:
        recorded = recording.sampling(steps[0])
    except RunError as error:
        yield Problem("rollout.replay", directory, str(error), "give another directory")
        return
    for name, value in sampling_settings(rollout).items():
        if recorded.get(name) != value:
            problem = f"the rollouts of rollout.replay were recorded with {recorded.get(name)}"
            yield Problem(f"rollout.{name}", value, problem, "use the same value")


COLLECTION_CHECKS: tuple[Check, ...] = (
    lambda facts: _check_overlong(facts.recipe.reward, facts.recipe.rollout.max_response_length),
    lambda facts: _check_dynamic_sampling(facts.recipe.rollout),
    lambda facts: _check_record(facts.recipe.rollout),
    lambda facts: _check_replay(
        facts.recipe.rollout, facts.recipe.evaluation.entries, facts.recipe.steps
    ),
)
"""For training only."""
