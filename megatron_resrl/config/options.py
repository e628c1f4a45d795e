"""Options of a command, separated from the settings of a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from megatron_resrl.errors import InputError, SettingError

_NO_VALUE = "expected one argument"
"""What argparse says of an option at the end of the command line."""


def separate_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Takes the options that a parser knows.

    Args:
        parser: Made with `exit_on_error=False` and `allow_abbrev=False`.
        arguments: Command line behind the recipe.

    Returns:
        The options, and what is left for the recipe, in its order.

    Raises:
        SettingError: An option has no value.
        InputError: It has none that is possible, as the option's converter says.
    """
    try:
        return parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        name = (error.argument_name or "").split("/")[0]
        if error.message == _NO_VALUE:
            raise SettingError(name, None, "no value follows it", f"write {name} VALUE") from error
        raise InputError(f"{name}: {error.message}") from error
