"""Function calling: BFCL and ToolRL. Ground truths are calls of the reward `function_calling`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_resrl.data.rows import ABSENT, find, parsed, read_rows
from megatron_resrl.errors import InputError
from megatron_resrl.preparation.question import Question, required
from megatron_resrl.rewards.tool_calls import BrokenCall, read_calls

CATEGORIES = (
    *("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance"),
    *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple"),
    "live_irrelevance",
)
"""Of BFCL: those with one turn whose answers are calls in Python's types."""
ANSWERS = "possible_answer"
"""Folder beside BFCL's questions, with a file of the same name."""
_SYSTEM = """\
You can call the functions below to do what the user asks. Reply with the calls alone, in the form
[name(parameter=value, ...), ...]
with values as Python writes them, and all calls that are needed in one list. If no function fits, \
or a value that is needed is missing, say so in words and call nothing.

Functions, as JSON schemas:
"""


def bfcl_rows(paths: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of BFCL's files with their answers, which the publisher keeps in a folder beside them.

    Raises:
        InputError: A question has no answer.
    """
    for path in paths:
        if path.parent.name == ANSWERS or (len(paths) > 1 and not _is_read(path)):
            continue
        beside = path.parent / ANSWERS / path.name
        answers = {}
        if beside.is_file():
            answers = {row.get("id"): row.get("ground_truth") for _, row in read_rows(beside)}
        for where, row in read_rows(path):
            if row.get("id") in answers:
                row = row | {"ground_truth": answers[row["id"]]}
            yield where, row


def _is_read(path: Path) -> bool:
    name = re.sub(r"^bfcl_v\d+_", "", path.stem.lower())
    return name in CATEGORIES


def bfcl_question(row: dict[str, Any], where: str, source: str) -> Question:
    """A question of BFCL with one turn; the functions stand in a system message.

    Raises:
        InputError: It is of a category with several turns or of another language, or its answer
            is missing.
    """
    number = str(required(row, where, "id"))
    category = re.sub(r"_\d[\d-]*$", "", number)
    if category not in CATEGORIES:
        raise InputError(
            f"{where}: {number} is of a category that is not prepared; give files of "
            f"{', '.join(CATEGORIES)}"
        )
    turns = parsed(required(row, where, "question"))
    functions = parsed(required(row, where, "function"))
    truth = find(row, "ground_truth")
    if category.endswith("irrelevance"):
        truth = []
    elif truth is ABSENT or truth is None:
        raise InputError(
            f"{where}: {number} has no ground_truth; leave the folder {ANSWERS} beside the file"
        )
    described = "\n".join(json.dumps(each, ensure_ascii=False) for each in functions)
    system = f"{_SYSTEM}{described}"
    messages = [{"role": each["role"], "content": each["content"]} for each in turns[0]]
    if messages[0]["role"] == "system":
        system = f"{messages.pop(0)['content']}\n\n{system}"
    names = ", ".join(each["name"] for each in functions)
    about = "\n".join([*(each["content"] for each in messages), f"Functions: {names}"])
    columns = {
        "id": number,
        "category": category,
        "functions": json.dumps(functions, ensure_ascii=False),
    }
    prompt = [{"role": "system", "content": system}, *messages]
    answer = json.dumps(parsed(truth), ensure_ascii=False)
    return Question(prompt, answer, about, source, columns)


def toolrl_question(row: dict[str, Any], where: str, source: str) -> Question:
    """A turn of ToolRL's conversations; the right calls are those of its model response.

    Raises:
        InputError: The response holds calls that cannot be read.
    """
    messages = [
        {"role": each["role"], "content": each["content"]}
        for each in parsed(required(row, where, "prompt"))
    ]
    response = str(required(row, where, "reward_model.ground_truth"))
    try:
        calls = read_calls(response.split("<response>")[0])
    except BrokenCall as error:
        raise InputError(
            f"{where}: the calls of reward_model.ground_truth cannot be read ({error}); repair or "
            "leave the row out"
        ) from error
    truth = [
        {call.name: {name: [value] for name, value in call.arguments.items()}} for call in calls
    ]
    about = "\n".join(each["content"] for each in messages)
    return Question(messages, json.dumps(truth, ensure_ascii=False), about, source)
