"""Objects that a setting names: a built-in name, or `path.py:name` of a user's file."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from megatron_resrl.errors import SettingError, closest
from megatron_resrl.user_files import run_file, split_name


@dataclass(frozen=True)
class Registry:
    """The objects that one setting can name."""

    setting: str
    """E.g. `reward.function`."""
    kind: str
    """What the setting names, e.g. `reward function`."""
    built_in: Mapping[str, str]
    """Name -> `module:attribute`; a module is imported when its object is asked for."""
    member: str
    """What a user's file has to define: `function`, `class` or `algorithm`."""
    is_member: Callable[[Any], bool]
    """Recognises such members, to list those of a file."""
    accepts: Callable[[Any], bool]
    """Whether an object can be used; a member that is none of these is refused as missing."""

    def find(self, name: str) -> tuple[Any, ModuleType]:
        """Finds an object; a user's file is run for it.

        Returns:
            The object and its module.

        Raises:
            SettingError: There is no such name, file or member of the file, or the file raises.
        """
        if name in self.built_in:
            path, attribute = self.built_in[name].split(":")
            module = importlib.import_module(path)
            return getattr(module, attribute), module
        file, attribute = self.locate(name)
        try:
            module = run_file(file, self.kind.replace(" ", "_"))
        except Exception as error:  # Whatever a user's file raises.
            cause = f"{type(error).__name__}: {error}"
            problem = f"{file} cannot be run ({cause})"
            raise self.refusal(name, problem, "correct the file") from error
        found = getattr(module, attribute, None)
        if found is None or not self.accepts(found):
            raise self._missing_member(name, module, file, attribute)
        return found, module

    def locate(self, name: str) -> tuple[Path, str]:
        """The file and the member of a name that is not built in.

        Raises:
            SettingError: It is no built-in name, with the nearest one, or there is no such file.
        """
        fix = f"give {', '.join(self.built_in)}, or path.py:name"
        place = split_name(name)
        if place is None:
            near = closest(name, self.built_in)
            hint = f" (did you mean {near!r}?)" if near else ""
            raise self.refusal(name, f"there is no such {self.kind}{hint}", fix)
        file, attribute = place
        if not file.is_file():
            raise self.refusal(name, f"there is no file {file}", fix)
        return file, attribute

    def _missing_member(
        self, name: str, module: ModuleType, file: Path, attribute: str
    ) -> SettingError:
        """The refusal of a file without the member, with the members that the file defines."""
        own = [
            key
            for key, value in inspect.getmembers(module, self.is_member)
            if value.__module__ == module.__name__
        ]
        plural = {"class": "classes"}.get(self.member, f"{self.member}s")
        fix = f"its {plural} are {', '.join(own)}" if own else f"it has no {plural} at all"
        return self.refusal(name, f"{file} has no {self.member} {attribute!r}", fix)

    def refusal(self, name: str, problem: str, fix: str) -> SettingError:
        """An error about the setting."""
        return SettingError(self.setting, name, problem, fix)
