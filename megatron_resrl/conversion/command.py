"""A conversion as a command: options from the function's arguments, the report printed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentParser

from megatron_resrl.conversion.report import ConversionReport
from megatron_resrl.errors import UNUSABLE, InputError, RunError


def run_conversion(
    convert: Callable[..., ConversionReport], arguments: Sequence[str] | None = None
) -> int:
    """Runs a conversion from the command line.

    Args:
        convert: The library function.
        arguments: Command line without the program's name; default: this process's. Options may
            be written with hyphens or underscores; `--force` needs no value.

    Returns:
        Exit status.
    """
    parser = ArgumentParser(description=(convert.__doc__ or "").splitlines()[0])
    parser.add_function_arguments(convert, as_positional=False)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args([_plain(word) for word in given])
    try:
        report = convert(**options.as_dict())
    except (InputError, RunError) as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    print(report)
    return 0


def _plain(word: str) -> str:
    """An option as jsonargparse wants it: underscores, and a value for the switch."""
    if word == "--force":
        return "--force=true"
    return re.sub(r"^--[\w-]+", lambda found: "--" + found[0][2:].replace("-", "_"), word)
