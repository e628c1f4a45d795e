"""The first questions of every file, through the tokenizer as a run does it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_resrl.checks.facts import Check, Facts
from megatron_resrl.checks.files import check_chat_template, check_tokenizer
from megatron_resrl.checks.first_rows import FIRST_ROWS, FirstRows, problem_of
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import DataConfig
from megatron_resrl.data.prompts import encode_prompts, report_too_long
from megatron_resrl.data.question_files import QuestionFile
from megatron_resrl.data.remarks import repetitions, too_few
from megatron_resrl.errors import InputError, SettingError
from megatron_resrl.evaluation.sets import SetSettings

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
    if not files or not files[0].records or not _tokenizer_is_usable(facts):
        return None
    try:
        (ids,) = encode_prompts(files[0].records[:1], facts.tokenizer, facts.recipe.data)
    except InputError:
        return None
    text = repr(facts.tokenizer.decode(ids))
    if len(text) > _SHOWN_CHARACTERS:
        half = _SHOWN_CHARACTERS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return f"first prompt: {len(ids)} tokens, {text}"


def _tokenizer_is_usable(facts: Facts) -> bool:
    problems = (*check_tokenizer(facts), *check_chat_template(facts))
    return not isinstance(facts.tokenizer, SettingError) and not problems


def _check_rows(files: Sequence[FirstRows], tokenizer: Any, data: DataConfig) -> Iterator[Problem]:
    """Formats and tokenizes the first questions of each file."""
    said: set[str] = set()
    count = min(FIRST_ROWS, max(1, _FORMATTED // len(files)))
    for each in files:
        records = each.records[:count]
        try:
            encoded = encode_prompts(records, tokenizer, data)
        except InputError as error:
            # What is said of a setting or a template is the same for every file.
            same = _PLACE.sub("", str(error).replace(each.file.path, ""))
            if same not in said:
                yield problem_of(each.setting, each.file.path, error)
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


def _note_questions(
    files: Sequence[FirstRows], data: DataConfig, per_step: int
) -> Iterator[Problem]:
    """Too few for a step of `per_step` prompts, or repeated."""
    records = [record for each in files for record in each.records]
    all_read = len(files) > 0 and all(each.whole for each in files)
    if all_read and (problem := too_few(len(records), per_step)):
        fix = f"use at most {len(records)}, or give more questions"
        yield Problem("rollout.prompts_per_step", per_step, problem, fix, "note")
    if problem := repetitions(records):
        if data.generator is None:
            fix = "leave repetitions out"
            yield Problem("data.train_files", data.train_files, problem, fix, "note")
        else:
            fix = "make fewer, or give options with more questions"
            yield Problem("data.generator", data.generator, problem, fix, "note")


def _check_held_out(
    training: Sequence[QuestionFile], sets: Sequence[SetSettings]
) -> Iterator[Problem]:
    """Whether a generator of an evaluation makes questions that are trained on."""
    made = [each.generator for each in training if each.generator is not None]
    for each in sets:
        own = each.file.generator
        if own is None or not any(own.shares_questions(other) for other in made):
            continue
        said = {"generator": own.address, "size": own.size, "seed": own.seed}
        problem = (
            f"it asks questions of the training: question i depends on seed + i, and that trains "
            f"from {made[0].seed} to {made[0].seed + made[0].size - 1}"
        )
        yield Problem(each.setting, said, problem, "give another seed, or leave it out")


def _of_training_rows(facts: Facts) -> Iterator[Problem]:
    files, problems = facts.training_rows
    yield from problems
    if files and _tokenizer_is_usable(facts):
        yield from _check_rows(files, facts.tokenizer, facts.recipe.data)


def _of_evaluation_rows(facts: Facts) -> Iterator[Problem]:
    files, problems = facts.evaluation_rows
    yield from problems
    if files and _tokenizer_is_usable(facts):
        yield from _check_rows(files, facts.tokenizer, facts.recipe.data)


DATA_ROW_CHECKS: tuple[Check, ...] = (
    lambda facts: _check_held_out(facts.training_files[0], facts.evaluation_sets[0]),
    _of_training_rows,
    lambda facts: _note_questions(
        facts.training_rows[0],
        facts.recipe.data,
        facts.recipe.rollout.prompts_per_step,
    ),
)
"""For training only."""

RUN_ROW_CHECKS: tuple[Check, ...] = (_of_evaluation_rows,)
"""For training and evaluation."""
