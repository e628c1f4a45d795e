"""The first questions of every file, through the tokenizer as a run does it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from megatron_resrl.checks.facts import Facts
from megatron_resrl.checks.files import check_tokenizer
from megatron_resrl.checks.first_rows import FIRST_ROWS, FirstRows, problem_of
from megatron_resrl.config.problems import Problem
from megatron_resrl.data.prompts import encode_prompts, report_too_long
from megatron_resrl.data.records import PromptRecord
from megatron_resrl.data.remarks import repetitions, too_few
from megatron_resrl.errors import InputError, SettingError

_FORMATTED = 400
"""Formatted and tokenized of all files together; at least one question of each."""

_SHOWN_CHARACTERS = 600
"""Of a prompt."""

_PLACE = re.compile(r"(line|row|item) \d+")


def first_prompt(facts: Facts) -> str | None:
    """The first training question as the model is given it, special tokens included.

    Returns:
        A line for people; None where there is none, which the checks say.
    """
    files, _ = facts.training_rows
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
    files, problems = facts.training_rows
    yield from problems
    yield from _tokenized("data.train_files", facts, files)
    yield from _notes(facts, files)


def check_evaluation_rows(facts: Facts) -> Iterator[Problem]:
    """What is wrong with the evaluation questions."""
    files, problems = facts.evaluation_rows
    yield from problems
    yield from _tokenized("evaluation.files", facts, files)


def _tokenized(setting: str, facts: Facts, files: Sequence[FirstRows]) -> Iterator[Problem]:
    """Formats and tokenizes the first questions of each file."""
    unreadable = isinstance(facts.tokenizer, SettingError)
    if not files or unreadable or list(check_tokenizer(facts)):
        return
    data = facts.recipe.data
    said: set[str] = set()
    count = min(FIRST_ROWS, max(1, _FORMATTED // len(files)))
    for each in files:
        records = each.records[:count]
        try:
            encoded = _encoded(facts, records)
        except InputError as error:
            # What is said of a setting or a template is the same for every file.
            same = _PLACE.sub("", str(error).replace(each.file.path, ""))
            if same not in said:
                yield problem_of(setting, each.file, error)
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
    return encode_prompts(records, facts.tokenizer, facts.recipe.data)


def _notes(facts: Facts, files: Sequence[FirstRows]) -> Iterator[Problem]:
    records = [record for each in files for record in each.records]
    entries, per_step = facts.recipe.data.train_files, facts.recipe.rollout.prompts_per_step
    all_read = len(files) > 0 and all(each.whole for each in files)
    if all_read and (problem := too_few(len(records), per_step)):
        fix = f"use at most {len(records)}, or give more questions"
        yield Problem("rollout.prompts_per_step", per_step, problem, fix, "note")
    if problem := repetitions(records):
        yield Problem("data.train_files", entries, problem, "leave repetitions out", "note")


DATA_ROW_CHECKS = (check_training_rows,)
"""For training only."""

RUN_ROW_CHECKS = (check_evaluation_rows,)
"""For training and evaluation."""
