"""The answer of a response as its verifier reads it, for votes."""

from __future__ import annotations

import functools
from collections.abc import Callable

from megatron_resrl.config.schema import RewardConfig
from megatron_resrl.rewards.final_answer import AnswerForm, answer_in
from megatron_resrl.rewards.integer import last_integer
from megatron_resrl.rewards.spelling import normalised

AnswerReader = Callable[[str], str]
"""Response -> its answer; empty: it has none."""


def answer_reader(reward: RewardConfig) -> AnswerReader | None:
    """How the verifier of a reward reads answers; None: its responses have no answers to count.

    Two answers of `math` are one vote if they are spelled alike after `normalised`: 1/2 and 0.5 are
    two, because whether they are equal would have to be asked of each pair.
    """
    if reward.functions:
        return None  # Which of them reads a response depends on its row.
    form = reward.options.get("answer", "auto")
    readers: dict[str, AnswerReader] = {
        "math": functools.partial(_mathematical, form=form),
        "integer": last_integer,
    }
    return readers.get(reward.function)


def _mathematical(response: str, form: AnswerForm) -> str:
    return "".join(normalised(answer_in(response, form)).split())
