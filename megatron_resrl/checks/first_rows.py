"""The first rows of question files, as the reader of a run reads them; once for all checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import DataConfig
from megatron_resrl.data.file_entries import kind_of
from megatron_resrl.data.prompts import read_records
from megatron_resrl.data.question_files import QuestionFile, pattern_problem
from megatron_resrl.data.records import PromptRecord
from megatron_resrl.errors import InputError, SettingError

FIRST_ROWS = 100
"""Read of a file that is larger than `_WHOLE_BYTES`, and looked at closely of any file."""
FIRST_MADE = 20
"""Made by a generator: of some tasks every question takes a second."""
_WHOLE_BYTES = 4_000_000


@dataclass(frozen=True)
class FirstRows:
    """Questions at the start of a file."""

    setting: str
    """That names the file."""
    file: QuestionFile
    records: list[PromptRecord]
    whole: bool
    """Whether that is all of them."""


def read_first_rows(
    setting: str, files: Sequence[QuestionFile], data: DataConfig
) -> tuple[list[FirstRows], list[Problem]]:
    """Reads small files as a whole and the start of others; missing ones are passed over.

    Args:
        setting: For messages.
        files: Those of `setting`.
        data: Columns that hold for all files.

    Returns:
        What was read, and what is wrong with the other files.
    """
    found: list[FirstRows] = []
    problems: list[Problem] = []
    if data.answer_pattern is not None and pattern_problem(data.answer_pattern):
        return found, problems  # `checks.files` says so, and of the files below.
    for file in dict.fromkeys(files):
        if file.generator is not None:
            if not file.generator.has_library:
                continue
            whole, most = file.generator.size <= FIRST_MADE, FIRST_MADE
        else:
            path = Path(file.path)
            if kind_of(path) is None or not path.is_file() or path.stat().st_size == 0:
                continue
            whole, most = path.stat().st_size <= _WHOLE_BYTES, FIRST_ROWS
        try:
            limit = None if whole else most
            records, _ = read_records(file, tools_key=data.tools_key, limit=limit)
            found.append(FirstRows(setting, file, records, whole))
        except InputError as error:
            problems.append(problem_of(setting, file.path, error))
    return found, problems


def problem_of(setting: str, path: str, error: InputError) -> Problem:
    """What an error of the reader or the tokenizer says of a file."""
    if isinstance(error, SettingError):
        return Problem.of(error)
    said = " ".join(str(error).split()).removeprefix(path).lstrip(",: ")
    problem, _, fix = said.rpartition("; ")
    return Problem(setting, path, problem or said, fix if problem else "correct the file")
