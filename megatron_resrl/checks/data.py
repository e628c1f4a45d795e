"""The first rows of every question file, through the reader and the tokenizer as a run does it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_resrl.checks.facts import Facts
from megatron_resrl.checks.files import check_tokenizer
from megatron_resrl.config.problems import Problem
from megatron_resrl.data.prompts import encode_prompts, read_records, report_too_long
from megatron_resrl.data.question_files import (
    QuestionFile,
    kind_of,
    pattern_problem,
)
from megatron_resrl.data.records import PromptRecord
from megatron_resrl.data.remarks import repetitions, too_few
from megatron_resrl.errors import InputError, SettingError

_FIRST_ROWS = 100
"""Read of a file that is larger than `_WHOLE_BYTES`, and formatted of any file."""
_WHOLE_BYTES = 4_000_000
_FORMATTED = 400
"""Formatted and tokenized of all files together; at least one question of each."""

_SHOWN_CHARACTERS = 600
"""Of a prompt."""

_PLACE = re.compile(r"(line|row|item) \d+")


@dataclass(frozen=True)
class FirstRows:
    """Questions at the beginning of a file."""

    file: QuestionFile
    records: list[PromptRecord]
    whole: bool
    """Whether that is all of them."""


def read_first_rows(
    setting: str, facts: Facts, files: Sequence[QuestionFile]
) -> tuple[list[FirstRows], list[Problem]]:
    """Reads small files as a whole and the beginning of others; missing ones are passed over.

    Args:
        setting: For messages.
        facts: Of the recipe.
        files: Those of `setting`.

    Returns:
        What was read, and what is wrong with the other files.
    """
    data = facts.recipe.data
    found: list[FirstRows] = []
    problems: list[Problem] = []
    if data.answer_pattern is not None and pattern_problem(data.answer_pattern):
        return found, problems  # `checks_files` says so, and of the files below.
    for file in dict.fromkeys(files):
        path = Path(file.path)
        if kind_of(path) is None or not path.is_file() or path.stat().st_size == 0:
            continue
        whole = path.stat().st_size <= _WHOLE_BYTES
        try:
            records, _ = read_records(
                path,
                prompt_key=file.prompt_key,
                answer_key=file.answer_key,
                answer_pattern=file.answer_pattern,
                system_prompt=file.system_prompt,
                data_source=file.data_source,
                tools_key=data.tools_key,
                limit=None if whole else _FIRST_ROWS,
            )
            found.append(FirstRows(file, records, whole))
        except InputError as error:
            problems.append(_problem(setting, file, error))
    return found, problems


def first_prompt(facts: Facts) -> str | None:
    """The first training question as the model is given it, special tokens included.

    Returns:
        A line for people; None where there is none, which the checks say.
    """
    files, _ = read_first_rows("data.train_files", facts, facts.training_files[0])
    unusable = isinstance(facts.tokenizer, SettingError) or list(check_tokenizer(facts))
    if unusable or not files or not files[0].records:
        return None
    try:
        (ids,) = _encoded(facts, files[0].records[:1])
    except InputError:
        return None
    text = repr(facts.tokenizer.decode(ids))
    if len(text) > _SHOWN_CHARACTERS:
        half = _SHOWN_CHARACTERS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return f"first prompt: {len(ids)} tokens, {text}"


def check_training_rows(facts: Facts) -> Iterator[Problem]:
    """What is wrong with the training questions, and notes on them."""
    files, problems = read_first_rows("data.train_files", facts, facts.training_files[0])
    yield from problems
    yield from _tokenized("data.train_files", facts, files)
    yield from _notes(facts, files)


def check_evaluation_rows(facts: Facts) -> Iterator[Problem]:
    """What is wrong with the evaluation questions."""
    files, problems = read_first_rows(
        "evaluation.files", facts, [each.file for each in facts.evaluation_sets[0]]
    )
    yield from problems
    yield from _tokenized("evaluation.files", facts, files)


def _tokenized(setting: str, facts: Facts, files: Sequence[FirstRows]) -> Iterator[Problem]:
    """Formats and tokenizes the first questions of each file."""
    unreadable = isinstance(facts.tokenizer, SettingError)
    if not files or unreadable or list(check_tokenizer(facts)):
        return
    data = facts.recipe.data
    said: set[str] = set()
    count = min(_FIRST_ROWS, max(1, _FORMATTED // len(files)))
    for each in files:
        records = each.records[:count]
        try:
            encoded = _encoded(facts, records)
        except InputError as error:
            # What is said of a setting or a template is the same for every file.
            same = _PLACE.sub("", str(error).replace(each.file.path, ""))
            if same not in said:
                yield _problem(setting, each.file, error)
            said.add(same)
            continue
        lengths = [len(ids) for ids in encoded]
        if min(lengths) > data.max_prompt_length >= 1:
            report = report_too_long(lengths, data.max_prompt_length)
            where = "" if each.whole and len(records) == len(each.records) else "the first "
            yield Problem(
                "data.max_prompt_length",
                data.max_prompt_length,
                f"{where}{report} ({each.file.path})",
                f"raise it; the shortest has {min(lengths)}",
                "note" if where else "recipe",
            )


def _encoded(facts: Facts, records: Sequence[PromptRecord]) -> list[list[int]]:
    """Token ids of questions, as a run would give them to the model."""
    data = facts.recipe.data
    return encode_prompts(
        records,
        facts.tokenizer,
        apply_chat_template=data.apply_chat_template,
        chat_template_kwargs=data.chat_template_kwargs,
        continue_final_message=data.continue_final_message,
    )


def _notes(facts: Facts, files: Sequence[FirstRows]) -> Iterator[Problem]:
    records = [record for each in files for record in each.records]
    entries, per_step = facts.recipe.data.train_files, facts.recipe.rollout.prompts_per_step
    all_read = len(files) > 0 and all(each.whole for each in files)
    if all_read and (problem := too_few(len(records), per_step)):
        fix = f"use at most {len(records)}, or give more questions"
        yield Problem("rollout.prompts_per_step", per_step, problem, fix, "note")
    if problem := repetitions(records):
        yield Problem("data.train_files", entries, problem, "leave repetitions out", "note")


def _problem(setting: str, file: QuestionFile, error: InputError) -> Problem:
    if isinstance(error, SettingError):
        return Problem.of(error)
    said = " ".join(str(error).split()).removeprefix(file.path).lstrip(",: ")
    problem, _, fix = said.rpartition("; ")
    return Problem(setting, file.path, problem or said, fix if problem else "correct the file")


DATA_ROW_CHECKS = (check_training_rows,)
"""For training only."""

RUN_ROW_CHECKS = (check_evaluation_rows,)
"""For training and evaluation."""
