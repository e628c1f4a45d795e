"""What `data.train_files` and `evaluation.files` name: files, and how each is read."""

from __future__ import annotations

import dataclasses
import glob
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_resrl.config.problems import Problem, RecipeError
from megatron_resrl.config.schema import DataConfig, FileEntry
from megatron_resrl.errors import closest

KINDS = (".jsonl", ".json", ".parquet")
COMPRESSIONS = (".gz", ".zst")
"""May follow `.jsonl` and `.json`; parquet compresses its columns itself."""
KNOWN = f"{', '.join(KINDS)}, or .jsonl and .json with {' or '.join(COMPRESSIONS)} behind it"

_PATTERN = re.compile(r"[*?[]")
_OWN_KEYS = ("prompt_key", "answer_key", "answer_pattern", "system_prompt")
"""Settings of `data` that an entry may have for itself."""


@dataclass(frozen=True)
class QuestionFile:
    """One file of questions, and how to read it."""

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
    data_source: str | None = None
    """Given to reward functions; None: as the row or the file's name says."""
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
    files: list[QuestionFile] = []
    problems: list[Problem] = []
    for entry in entries:
        if isinstance(entry, QuestionFile):
            files.append(entry)
            continue
        wrong = list(_malformed(setting, entry, own_keys))
        problems += wrong
        if wrong:
            continue
        own = {"path": entry} if isinstance(entry, str) else dict(entry)
        path, name = own.pop("path"), own.pop("name", None)
        further = {key: own.pop(key) for key in own_keys if key in own}
        found = expanded(path)
        if not found:
            problems.append(_no_file(setting, path))
        elif name is not None and len(found) > 1:
            problem = f"{len(found)} files cannot have one name"
            problems.append(Problem(setting, entry, problem, "name one file or leave `name` out"))
        shared = {key: getattr(data, key) for key in _OWN_KEYS}
        files += [
            QuestionFile(each, name or set_name(each), **(shared | own), own=further)
            for each in found
        ]
    return files, problems


def kind_of(path: str | Path) -> str | None:
    """Which of `KINDS` a file's name says; None: none of them."""
    name = Path(path).name.lower()
    for compression in COMPRESSIONS:
        if name.endswith(compression):
            name = name.removesuffix(compression)
            return next((kind for kind in KINDS[:2] if name.endswith(kind)), None)
    return next((kind for kind in KINDS if name.endswith(kind)), None)


def expanded(path: str, known: Callable[[str | Path], str | None] = kind_of) -> list[str]:
    """The files that a path names, sorted: itself, those in a folder, or those of a pattern.

    Args:
        path: May be of no file, and is returned all the same if it is no pattern.
        known: The kind of a file; those without one are left out of folders and patterns.
    """
    if Path(path).is_dir():
        inside = (each for each in Path(path).iterdir() if not each.name.startswith("."))
        return sorted(str(each) for each in inside if each.is_file() and known(each))
    if not _PATTERN.search(path) or Path(path).exists():
        return [path]
    return sorted(
        each for each in glob.glob(path, recursive=True) if Path(each).is_file() and known(each)
    )


def set_name(path: str | Path) -> str:
    """A file's name without what its kind and compression put behind it."""
    kind, name = kind_of(path), Path(path).name
    return name[: name.lower().rindex(kind)] if kind else Path(path).stem


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


def _malformed(setting: str, entry: Any, own_keys: Collection[str]) -> Iterator[Problem]:
    if isinstance(entry, str):
        if not entry.strip():
            yield Problem(setting, entry, "it is empty", "give the path of a file")
        return
    known = {each.name for each in dataclasses.fields(QuestionFile)} - {"own"} | {*own_keys}
    for key, value in entry.items():
        if key in own_keys:
            continue
        if key not in known:
            near = closest(str(key), known)
            fix = f"did you mean {near}?" if near else f"a file has {', '.join(sorted(known))}"
            yield Problem(setting, entry, f"a file has no key {key!r}", fix)
        elif value is not None and not isinstance(value, str):
            yield Problem(setting, entry, f"{key} is {value!r}", "give a text")
        elif key == "answer_pattern" and value is not None and (wrong := pattern_problem(value)):
            yield Problem(setting, entry, f"answer_pattern {value!r}: {wrong[0]}", wrong[1])
    if not entry.get("path"):
        yield Problem(setting, entry, "it has no path", "give {path: FILE, prompt_key: COLUMN}")


def _no_file(setting: str, path: str) -> Problem:
    if Path(path).is_dir():
        fix = f"folders in it are not read: give a pattern such as {path.rstrip('/')}/**/*.parquet"
        return Problem(setting, path, f"the folder holds no file that ends in {KNOWN}", fix)
    fix = f"correct it; relative patterns start from {Path.cwd()}"
    return Problem(setting, path, f"no file of a known kind ({KNOWN}) matches", fix)
