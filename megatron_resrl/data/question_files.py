"""What `data.train_files` and `evaluation.files` name: files, and how each is read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_resrl.config.problems import Problem, RecipeError
from megatron_resrl.config.schema import DataConfig
from megatron_resrl.config.schema_questions import FileEntry
from megatron_resrl.data.file_entries import resolve_entries
from megatron_resrl.generators.generator import Generator

QUESTION = "{question}"
"""In a prompt template: stands for the question."""

_OWN_KEYS = ("prompt_key", "answer_key", "answer_pattern", "system_prompt")
"""Settings of `data` that an entry may have for itself."""


@dataclass(frozen=True)
class QuestionFile:
    """One file of questions, and how to read it; or a generator of questions."""

    path: str
    name: str
    """In the metrics of an evaluation."""
    prompt_key: str | None = None
    """Column of the question: its name, or `a.b` for field b of column a, a struct or JSON text;
    None: the first of `prompts.DEFAULT_PROMPT_KEYS` that a row has."""
    answer_key: str | None = None
    """Column of the ground truth; None: the first of `prompts.DEFAULT_ANSWER_KEYS` of a row."""
    answer_pattern: str | None = None
    """Regular expression with one group: the part of the answer's text that is the ground truth;
    None: all of it."""
    system_prompt: str | None = None
    """Put before the messages of every prompt that does not begin with one; None: nothing."""
    prompt_template: str | None = None
    """What the user says, with `{question}` where the question stands; None: the question alone. Of
    a chat the last message of the user is the question."""
    data_source: str | None = None
    """Given to reward functions; None: as the row or the file's name says."""
    generator: Generator | None = None
    """What makes the questions, called `path` then; None: they stand in a file."""
    own: dict[str, Any] = field(default_factory=dict, compare=False)
    """Further keys of the entry, which do not say how the file is read."""


def question_files(
    setting: str, entries: Sequence[FileEntry | QuestionFile], data: DataConfig
) -> list[QuestionFile]:
    """The files that entries name, in their order; those of a folder or pattern sorted.

    Args:
        setting: For messages.
        entries: Paths of files, folders or patterns, mappings with `path` and keys of their own,
            or what this function returned.
        data: Says what an entry does not say.

    Raises:
        RecipeError: An entry is malformed, or names no file.
    """
    files, problems = resolve_files(setting, entries, data)
    if problems:
        raise RecipeError(problems)
    return files


def resolve_files(
    setting: str,
    entries: Sequence[FileEntry | QuestionFile],
    data: DataConfig,
    *,
    own_keys: Collection[str] = (),
) -> tuple[list[QuestionFile], list[Problem]]:
    """Like `question_files`, but what is wrong is returned; a missing file counts as a file.

    Args:
        setting: For messages.
        entries: See `question_files`.
        data: Says what an entry does not say.
        own_keys: Keys that an entry may also have; they become `QuestionFile.own`, unchecked.
    """
    wrong = [problem for entry in entries for problem in _wrong_texts(setting, entry)]
    defaults = {key: getattr(data, key) for key in _OWN_KEYS}
    files, problems = resolve_entries(setting, entries, QuestionFile, defaults, own_keys=own_keys)
    return files, problems + wrong


def _wrong_texts(setting: str, entry: FileEntry | QuestionFile) -> Iterator[Problem]:
    if not isinstance(entry, dict):
        return
    pattern, template = entry.get("answer_pattern"), entry.get("prompt_template")
    if isinstance(pattern, str) and (found := pattern_problem(pattern)):
        yield Problem(setting, entry, f"answer_pattern {pattern!r}: {found[0]}", found[1])
    if isinstance(template, str) and QUESTION not in template:
        fix = f"write {QUESTION} where the question is to stand"
        yield Problem(setting, entry, "its prompt_template has no place for the question", fix)


def without_template(text: str, template: str | None) -> str:
    """The question in a prompt that a template gave words around it; None: there was none."""
    before, _, after = (template or QUESTION).partition(QUESTION)
    return text.removeprefix(before).removesuffix(after)


def pattern_problem(pattern: str) -> tuple[str, str] | None:
    """Why an answer pattern cannot be used, and what would be right; None: it can."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        return f"not a valid regular expression ({error})", "correct it"
    if groups != 1:
        fix = r"put parentheses around the answer, e.g. '#### (-?\d+)'"
        return f"it has {groups} groups, not one", fix
    return None
