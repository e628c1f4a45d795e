"""Countdown: a number to be made of other numbers."""

from __future__ import annotations

import json
from typing import Any

from megatron_resrl.data.rows import ABSENT, find, parsed
from megatron_resrl.preparation.question import Question, required


def countdown_question(row: dict[str, Any], where: str, source: str) -> Question:
    """A task of TinyZero's and UFT's files, asked in words of ours.

    Their prompts begin the reply of a base model, which no chat template allows.
    """
    truth = find(row, "reward_model.ground_truth")
    fields = row if truth is ABSENT else parsed(truth)
    numbers = [int(each) for each in required(fields, where, "numbers", "nums")]
    target = int(required(fields, where, "target"))
    prompt = (
        f"Make an expression of the numbers {', '.join(map(str, numbers))} that equals {target}. "
        "Use every number exactly once, with +, -, *, / and parentheses. Think step by step, and "
        "end with the expression in <answer></answer>."
    )
    about = f"{target} of {' '.join(map(str, sorted(numbers)))}"
    answer = json.dumps({"numbers": numbers, "target": target})
    return Question(prompt, answer, about, source)
