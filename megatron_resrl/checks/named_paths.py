"""Errors of the file system in files that a recipe names: the user's to mend, not a program's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_resrl.config.schema import RunSettings
from megatron_resrl.errors import SettingError

_DEFAULT_FIX = "give one that this process may use"
_FIXES = {28: "make room or choose another directory", 122: "make room or choose another directory"}
"""Error number (no space left, quota exceeded) -> what would be right."""


@contextlib.contextmanager
def named_paths(recipe: RunSettings) -> Iterator[None]:
    """Turns an `OSError` inside the block into an error of the setting that names its file.

    Raises:
        SettingError: The file is one of the recipe's, or lies below one of its directories. Other
            errors stay what they are.
    """
    try:
        yield
    except OSError as error:
        found = setting_error(recipe, error)
        if found is None:
            raise
        raise found from error


def setting_error(recipe: RunSettings, error: OSError) -> SettingError | None:
    """What a file-system error means for the recipe; None if no setting names its file."""
    if not isinstance(error.filename, (str, Path)):
        return None
    file = Path(error.filename).absolute()
    named = [(setting, path) for setting, path in _paths(asdict(recipe)) if path]
    within = [
        (setting, path)
        for setting, path in named
        if file == Path(path).absolute() or Path(path).absolute() in file.parents
    ]
    if not within:
        return None
    setting, path = max(within, key=lambda each: len(each[1]))
    problem = f"{error.filename} cannot be used ({error.strerror})"
    return SettingError(setting, path, problem, _FIXES.get(error.errno or 0, _DEFAULT_FIX))


def _is_root(path: str) -> bool:
    """Whether everything lies below it, so that it says nothing."""
    return not path.strip() or Path(path).absolute() in Path.cwd().parents


def _paths(content: Any, setting: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a recipe, as any of them may be a path."""
    if isinstance(content, str):
        path = content.partition(".py:")[0] + ".py" if ".py:" in content else content
        if "://" not in path and not _is_root(path):
            yield setting, path
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _paths(value, f"{setting}.{name}" if setting else str(name))
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _paths(value, setting)
