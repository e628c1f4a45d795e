"""What a command is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron_resrl.config.recipe_schema import schema_of
from megatron_resrl.config.schema import RunSettings

SettingsOf = Callable[[list[str]], list[str]]
"""CliCommand line behind the recipe -> what is left of it for the recipe."""


@dataclass(frozen=True)
class CliCommand:
    """One command of `megatron-resrl`."""

    run: Callable[[str | None, list[str]], int]
    """Called with the recipe, or None if none was named, and what stands behind it. Returns the
    exit status; errors that explain themselves are printed by `main`."""
    usage: str
    """Lines for `megatron-resrl --help`."""
    print_help: Callable[[], None]
    """Prints everything that the command understands."""
    settings_of: SettingsOf = list
    """Takes away the options of the command itself, which are no settings of a recipe."""


def print_settings(command: str, summary: str, kind: type[RunSettings]) -> None:
    """Prints how a command that takes a recipe is called, with every setting."""
    schema_of(kind).parser(f"megatron-resrl {command}", summary).print_help()
