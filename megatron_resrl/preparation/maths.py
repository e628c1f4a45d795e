"""Questions of mathematics, whatever trainer's layout their file has."""

from __future__ import annotations

import re
from typing import Any

from megatron_resrl.data.messages import read_messages
from megatron_resrl.data.rows import is_blank, parsed
from megatron_resrl.errors import InputError
from megatron_resrl.preparation.question import Question, first_of, kept
from megatron_resrl.rewards.final_answer import boxed
from megatron_resrl.rewards.math import check_ground_truth

_PROMPTS = ("problem", "question", "prompt", "source_prompt")
_ANSWERS = (
    *("reward_model.ground_truth.target", "reward_model.ground_truth"),
    *("final_answer", "answer", "ground_truth", "target"),
)
_SOLUTION = "solution"
_KEPT = ("id", "unique_id", "level", "subject", "type", "subfield")
_HASHES = re.compile(r"####\s*(.+?)\s*$")
_FRAME = re.compile(
    r"^Solve the following math problem step by step\. The last line of your response should be .*?"
    r"\n\n(?P<question>.*?)(?:\n\nRemember to put your answer on its own line after .*)?$",
    re.S,
)
"""Instructions that the file of the DAPO authors has around every question."""


def maths_question(row: dict[str, Any], where: str, source: str) -> Question | None:
    r"""A question whose answer is a number or an expression.

    The answer is the field `answer` or one that stands for it in other layouts; without one, what
    the solution's last `\boxed{}` holds. Of a solution that ends in `#### answer`, as GSM8K's,
    it is the part behind the mark. An answer that the reward `math` cannot judge, such as a
    sentence, is none: it would end the run that asks the question.
    """
    key, prompt = first_of(row, where, *_PROMPTS)
    messages = read_messages(prompt, row, f"{where}, {key}")
    if messages is None:
        return None
    if len(messages) > 1 or messages[0]["role"] != "user":
        raise InputError(
            f"{where}: {key} has {len(messages)} messages; give a file whose questions are one "
            "message of the user's"
        )
    text = _without_frame(messages[0]["content"])
    answer = _answer(row, where)
    if answer is None:
        return None
    try:
        check_ground_truth(answer)
    except ValueError:
        return None
    return Question(text, answer, text, source, kept(row, *_KEPT))


def _answer(row: dict[str, Any], where: str) -> str | None:
    # A solution is no answer where a field for the answer is empty.
    key, value = first_of(row, where, *_ANSWERS, _SOLUTION)
    value = parsed(value) if key == "final_answer" else value
    if isinstance(value, list) and key == "final_answer":
        # OlympiadBench: one text with all parts of the answer.
        value = ", ".join(str(each) for each in value if not is_blank(each))
    if is_blank(value):
        return None
    text = str(value).strip()
    if found := _HASHES.search(text):
        return found[1]
    return boxed(text) if key == _SOLUTION else text


def _without_frame(text: str) -> str:
    found = _FRAME.match(text)
    return found["question"] if found else text
