"""The command `algorithms`: what `algorithm.name` and `algorithm.weighting` can be."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Mapping
from typing import Any

from megatron_resrl.cli.command import CliCommand
from megatron_resrl.errors import InputError, closest
from megatron_resrl.token_weighting.registry import WEIGHTINGS

_OPTIONS = ("--json",)
_WIDTH = 100
_HELP = """\
usage: megatron-resrl algorithms [--json]

Every algorithm (`algorithm.name`) and every token weighting (`algorithm.weighting`): one line, the
paper that its formula is from, the settings that it was published with, and its options
(`algorithm.options`, `algorithm.weighting_options`).

  --json   one JSON object
"""


def _algorithms(recipe: str | None, options: list[str]) -> int:
    for option in [*([] if recipe is None else [recipe]), *options]:
        if option not in _OPTIONS:
            meant = closest(option, _OPTIONS)
            hint = f"did you mean {meant}?" if meant else f"options are {', '.join(_OPTIONS)}"
            raise InputError(f"algorithms: unknown option {option!r}; {hint}")
    found = listing()
    print(json.dumps(found, indent=1) if "--json" in options else _text(found))
    return 0


def listing() -> dict[str, Any]:
    """What there is: `algorithms`, `options` of all of them, and `weightings`, by name."""
    from megatron_resrl.algorithms.listing import (  # torch
        algorithm_entries,
        common_options,
        option_entries,
    )

    def described(options: type | None) -> dict[str, Any]:
        entries = {} if options is None else option_entries(options)
        return {name: dataclasses.asdict(each) for name, each in entries.items()}

    return {
        "algorithms": {each.name: dataclasses.asdict(each) for each in algorithm_entries()},
        "options": {name: dataclasses.asdict(each) for name, each in common_options().items()},
        "weightings": {
            name: {
                "summary": each.summary,
                "source": each.source,
                "options": described(each.options),
            }
            for name, each in WEIGHTINGS.items()
        },
    }


def _text(found: Mapping[str, Any]) -> str:
    lines = ["algorithm.name:"]
    for name, entry in found["algorithms"].items():
        lines += _lines(name, entry["summary"], entry["source"])
        if entry["published_with"]:
            settings = (f"{key}: {value}" for key, value in entry["published_with"].items())
            lines.append(f"      published with {', '.join(settings)}")
        lines += _option_lines(entry["options"])
    lines += ["", "options of every algorithm:", *_option_lines(found["options"])]
    lines += ["", "algorithm.weighting, with any of them:"]
    for name, entry in found["weightings"].items():
        lines += _lines(name, entry["summary"], entry["source"])
        lines += _option_lines(entry["options"])
    return "\n".join(lines)


def _lines(name: str, summary: str, source: str) -> list[str]:
    text = f"{name}: {summary}" + (f" ({source})" if source else "")
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="      ")


def _option_lines(options: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, option in options.items():
        text = f"{name} = {json.dumps(option['default'])}: {option['meaning']}"
        lines += textwrap.wrap(text, _WIDTH, initial_indent="      ", subsequent_indent="        ")
    return lines


ALGORITHMS = CliCommand(
    _algorithms,
    "algorithms and token weightings: one line, source and options each ([--json])",
    lambda: print(_HELP, end=""),
)
