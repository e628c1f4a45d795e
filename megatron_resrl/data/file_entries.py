"""What a setting with files names: files, each with how it is read."""

from __future__ import annotations

import dataclasses
import glob
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema_questions import FileEntry
from megatron_resrl.errors import closest

KINDS = (".jsonl", ".json", ".parquet")
COMPRESSIONS = (".gz", ".zst")
"""May follow `.jsonl` and `.json`; parquet compresses its columns itself."""
KNOWN = f"{', '.join(KINDS)}, or .jsonl and .json with {' or '.join(COMPRESSIONS)} behind it"

_PATTERN = re.compile(r"[*?[]")


F = TypeVar("F")
"""A frozen dataclass of a file: `path`, `name`, and fields of text that say how it is read."""


def resolve_entries(
    setting: str,
    entries: Sequence[FileEntry | F],
    kind: Callable[..., F],
    defaults: Mapping[str, Any],
    *,
    own_keys: Collection[str] = (),
    example: str = "prompt_key: COLUMN",
) -> tuple[list[F], list[Problem]]:
    """The files that entries name, in their order; those of a folder or pattern sorted.

    Args:
        setting: For messages.
        entries: Paths of files, folders or patterns, mappings with `path` and keys of their own,
            or what this function returned.
        kind: Dataclass of such a file.
        defaults: Says what an entry does not say.
        own_keys: Keys that an entry may also have; they become the field `own`, unchecked.
        example: A key of an entry, for messages.

    Returns:
        The files, and what is wrong; a missing file counts as a file.
    """
    files: list[F] = []
    problems: list[Problem] = []
    fields = {each.name for each in dataclasses.fields(kind)} - {"own", "generator"}  # type: ignore[arg-type]
    for entry in entries:
        if not isinstance(entry, (str, dict)):
            files.append(entry)
            continue
        wrong = list(_malformed(setting, entry, fields, own_keys, example))
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
        extra = {"own": further} if own_keys else {}
        files += [
            kind(path=each, name=name or set_name(each), **(dict(defaults) | own), **extra)
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


def _malformed(
    setting: str, entry: Any, fields: Collection[str], own_keys: Collection[str], example: str
) -> Iterator[Problem]:
    if isinstance(entry, str):
        if not entry.strip():
            yield Problem(setting, entry, "it is empty", "give the path of a file")
        return
    known = {*fields, *own_keys}
    for key, value in entry.items():
        if key in own_keys:
            continue
        if key not in known:
            near = closest(str(key), known)
            fix = f"did you mean {near}?" if near else f"a file has {', '.join(sorted(known))}"
            yield Problem(setting, entry, f"a file has no key {key!r}", fix)
        elif value is not None and not isinstance(value, str):
            yield Problem(setting, entry, f"{key} is {value!r}", "give a text")
    if not entry.get("path"):
        yield Problem(setting, entry, "it has no path", f"give {{path: FILE, {example}}}")


def _no_file(setting: str, path: str) -> Problem:
    if Path(path).is_dir():
        fix = f"folders in it are not read: give a pattern such as {path.rstrip('/')}/**/*.parquet"
        return Problem(setting, path, f"the folder holds no file that ends in {KNOWN}", fix)
    fix = f"correct it; relative patterns start from {Path.cwd()}"
    return Problem(setting, path, f"no file of a known kind ({KNOWN}) matches", fix)
