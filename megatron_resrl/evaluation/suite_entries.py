"""Entries of `evaluation.suites` -> entries of `evaluation.files`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema_questions import FileEntry
from megatron_resrl.data.file_entries import expanded
from megatron_resrl.data.rows import ABSENT, columns, find, read_rows
from megatron_resrl.errors import InputError, closest
from megatron_resrl.evaluation.suites import SUITES, Columns, Suite

SUITES_SETTING = "evaluation.suites"
_ENDINGS = (".parquet", ".jsonl")
"""Of files in `evaluation.suites_dir`, in the order in which they are looked for."""
_OWN_COLUMNS = ("prompt_key", "answer_key", "answer_pattern")
"""Keys of an entry that say how its file is laid out."""


def suite_entries(
    entries: Sequence[FileEntry], directory: str
) -> tuple[list[tuple[Suite, dict[str, Any]]], list[Problem]]:
    """What the entries mean as entries of `evaluation.files`.

    Args:
        entries: Of `evaluation.suites`.
        directory: `evaluation.suites_dir`.

    Returns:
        Suite and entry of each that can be used, and what is wrong with the others. A file that is
        not there is a problem of the machine, and its entry is returned all the same.
    """
    found: list[tuple[Suite, dict[str, Any]]] = []
    problems: list[Problem] = []
    for entry in entries:
        own: dict[str, Any] = {"suite": entry} if isinstance(entry, str) else dict(entry)
        name = own.pop("suite", None)
        if wrong := _wrong_name(entry, name):
            problems.append(wrong)
            continue
        suite = SUITES[name]
        path = own.pop("path", None) or _path(name, directory)
        missing = _missing_file(entry, name, str(path))
        layout = None
        if missing:
            problems.append(missing)
        elif not own.keys() & set(_OWN_COLUMNS):
            layout, unknown = _layout(entry, name, str(path))
            if unknown:
                problems.append(unknown)
                continue
        found.append((suite, suite.entry(name, str(path), layout) | own))
    return found, problems


def _wrong_name(entry: FileEntry, name: Any) -> Problem | None:
    known = ", ".join(SUITES)
    if name is None:
        fix = f"give a suite's name, or {{suite: NAME, path: FILE}}; suites are {known}"
        return Problem(SUITES_SETTING, entry, "it names no suite", fix)
    if name in SUITES:
        return None
    near = closest(str(name), SUITES)
    if near is None and Path(str(name)).suffix:
        fix = "name a file in evaluation.files, or write {suite: NAME, path: FILE}"
        return Problem(SUITES_SETTING, entry, "it is a file, not a suite", fix)
    fix = f"did you mean {near}?" if near else f"suites are {known}"
    return Problem(SUITES_SETTING, entry, f"there is no suite {str(name)!r}", fix)


def _path(name: str, directory: str) -> str:
    """The suite's file in the folder; that of the first ending where there is none."""
    paths = [str(Path(directory) / f"{name}{ending}") for ending in _ENDINGS]
    return next((path for path in paths if Path(path).is_file()), paths[0])


def _missing_file(entry: FileEntry, name: str, path: str) -> Problem | None:
    if any(Path(each).is_file() for each in expanded(path)):
        return None
    fix = (
        f"make it with python tools/prepare_data.py {name}, name its folder in "
        f"evaluation.suites_dir, or give {{suite: {name}, path: FILE}}"
    )
    return Problem(SUITES_SETTING, entry, f"there is no file {path}", fix, "machine")


def _layout(entry: FileEntry, name: str, path: str) -> tuple[Columns | None, Problem | None]:
    """The columns of a suite's file by its first row; none where the file cannot be read, which
    its reader says."""
    row = next(_first_rows(path), None)
    if row is None:
        return None, None
    for layout in SUITES[name].columns:
        if ABSENT not in (find(row, layout.prompt), find(row, layout.answer)):
            return layout, None
    wanted = " or ".join(f"{each.prompt} and {each.answer}" for each in SUITES[name].columns)
    fix = (
        f"convert it with python tools/prepare_data.py {name}, or name prompt_key and answer_key "
        f"(read are {wanted})"
    )
    problem = f"{path} is not laid out as a file of this suite, its columns are {columns(row)}"
    return None, Problem(SUITES_SETTING, entry, problem, fix)


def _first_rows(path: str) -> Iterator[dict[str, Any]]:
    try:
        for _, row in read_rows(Path(expanded(path)[0])):
            yield row
    except InputError:
        return
