"""Which responses a step is made of: refilled, cut off, recorded, replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_resrl.config.facts import Facts
from megatron_resrl.config.problems import Problem


def check_overlong(facts: Facts) -> Iterator[Problem]:
    """The penalty begins inside of a response."""
    reward, limit = facts.recipe.reward, facts.recipe.rollout.max_response_length
    if reward.overlong == "penalize" and reward.overlong_buffer > limit:
        yield Problem(
            "reward.overlong_buffer",
            reward.overlong_buffer,
            f"longer than a response (rollout.max_response_length = {limit})",
            "give the tokens before that limit over which the penalty grows",
        )


def check_replay(facts: Facts) -> Iterator[Problem]:
    """There is something to replay, and it is not overwritten."""
    rollout = facts.recipe.rollout
    if rollout.replay is None:
        return
    if not list(Path(rollout.replay).glob("step_*")):
        yield Problem(
            "rollout.replay",
            rollout.replay,
            "no recorded step is there",
            "give the directory of a run with rollout.record",
        )
    if rollout.record is not None:
        yield Problem(
            "rollout.record",
            rollout.record,
            "a replay makes no rollouts",
            "leave it out, or leave out rollout.replay",
        )


COLLECTION_CHECKS: tuple[Callable[[Facts], Iterator[Problem]], ...] = (
    check_overlong,
    check_replay,
)
