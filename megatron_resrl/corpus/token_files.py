"""Which token files a recipe of pretraining names, and how they are shared out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema_questions import FileEntry
from megatron_resrl.errors import closest

_KEYS = ("path", "name", "weight")
_TOLERANCE = 1e-6
"""By which the sum of weights may differ from 1."""


@dataclass(frozen=True)
class TokenFile:
    """One dataset of token ids: `<prefix>.bin` and `<prefix>.idx`."""

    prefix: str
    name: str
    """In metrics."""
    weight: float | None = None
    """Share of the sequences; None: the share of its tokens."""


def resolve_token_files(
    setting: str, entries: Sequence[FileEntry]
) -> tuple[list[TokenFile], list[Problem]]:
    """Reads the entries of `data.train_files` or `data.validation_files`.

    Args:
        setting: For messages.
        entries: Prefixes, or mappings with `path` and what holds for it alone.

    Returns:
        The files, in order, and what is wrong with the other entries, the names or the weights.
    """
    files: list[TokenFile] = []
    problems: list[Problem] = []
    for entry in entries:
        given = entry if isinstance(entry, dict) else {"path": entry}
        wrong = _entry_problem(given)
        if wrong is not None:
            problems.append(Problem(setting, entry, *wrong))
            continue
        prefix, weight = given["path"], given.get("weight")
        name = given.get("name") or Path(prefix).name
        files.append(TokenFile(prefix, name, None if weight is None else float(weight)))
    if not problems:
        problems += _check_names(setting, files)
        problems += _check_weights(setting, files)
    return files, problems


def _entry_problem(given: dict[str, Any]) -> tuple[str, str] | None:
    unknown = [key for key in given if key not in _KEYS]
    if unknown:
        near = closest(str(unknown[0]), _KEYS)
        fix = f"did you mean {near}?" if near else f"an entry has {', '.join(_KEYS)}"
        return f"an entry has no key {unknown[0]!r}", fix
    for key in ("path", "name"):
        if not isinstance(given.get(key, ""), str) or (key == "path" and not given.get(key)):
            return f"its {key} is {given.get(key)!r}", "give text"
    weight = given.get("weight")
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if weight is not None and not (number and math.isfinite(weight) and weight > 0):
        return f"its weight is {weight!r}", "give a number above 0, or leave the file out"
    return None


def _check_names(setting: str, files: Sequence[TokenFile]) -> list[Problem]:
    names = [file.name for file in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not twice:
        return []
    problem = f"two files share the name {twice[0]!r} in the metrics"
    fix = "give one file another name, e.g. {path: PREFIX, name: NAME}"
    return [Problem(setting, [file.prefix for file in files], problem, fix)]


def _check_weights(setting: str, files: Sequence[TokenFile]) -> list[Problem]:
    weights = {file.prefix: file.weight for file in files}
    given = [weight for weight in weights.values() if weight is not None]
    if not given:
        return []
    if len(given) < len(files):
        without = next(prefix for prefix, weight in weights.items() if weight is None)
        problem = f"{without} has no weight, and other files have one"
        return [Problem(setting, weights, problem, "give all files a weight, or none")]
    if abs(sum(given) - 1) > _TOLERANCE:
        problem = f"the weights sum to {sum(given):.6g}"
        return [Problem(setting, weights, problem, "give weights that sum to 1")]
    return []
