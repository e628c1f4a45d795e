"""The answer of a response as its verifier reads it, for votes."""

from __future__ import annotations

from collections.abc import Callable

from megatron_resrl.config.schema import RewardConfig
from megatron_resrl.rewards.final_answer import final_answer
from megatron_resrl.rewards.integer import last_integer
from megatron_resrl.rewards.spelling import normalised

AnswerReader = Callable[[str], str]
"""Response -> its answer; empty: it has none."""


def answer_reader(reward: RewardConfig) -> AnswerReader | None:
    """How the verifier of a reward reads answers; None: its responses have no answers to count.

    Two answers of `math` are one vote if they are spelled alike after `normalised`: 1/2 and 0.5 are
    two, because whether they are equal would have to be asked of each pair.
    """
    return {"math": _mathematical, "integer": last_integer}.get(reward.function)


def _mathematical(response: str) -> str:
    return "".join(normalised(final_answer(response)).split())
