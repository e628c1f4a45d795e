"""The options of `doctor`, which are no settings of a recipe."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_resrl.config.options import separate_options
from megatron_resrl.config.stages import STAGES, Stage
from megatron_resrl.errors import SettingError


@dataclass(frozen=True)
class DoctorOptions:
    """What is wanted; see `options_parser` for each."""

    output_dir: str | None = None
    stage: Stage = "train"
    wait: float = 120.0
    quick: bool = False
    json: bool = False


def options_parser() -> argparse.ArgumentParser:
    """A parser of the options, which leaves settings of the recipe alone."""
    parser = argparse.ArgumentParser(
        prog="megatron-resrl doctor",
        usage="megatron-resrl doctor [RECIPE.yaml] [options] [--section.setting VALUE ...]",
        description=(
            "Looks at software, GPUs, hosts, output folder and network, alone or as the ranks of "
            "a job, and says what to change."
        ),
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
    )
    defaults = DoctorOptions()
    meaning = "folder that a run would write to (default: the recipe's; without a recipe, `.`)"
    parser.add_argument("--output_dir", "--output-dir", help=meaning)
    meaning = f"whose recipe it is: {', '.join(STAGES)} (default: train)"
    parser.add_argument("--stage", default=defaults.stage, help=meaning)
    meaning = "seconds in which all ranks must have come (default: 120)"
    parser.add_argument("--wait", default=defaults.wait, help=meaning)
    meaning = "smaller messages and files, half a minute instead of three"
    parser.add_argument("--quick", action="store_true", help=meaning)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser


def take_options(arguments: Sequence[str]) -> tuple[DoctorOptions, list[str]]:
    """Separates the options of `doctor` from settings of the recipe.

    Args:
        arguments: Command line behind the recipe.

    Returns:
        The options, and what is left for the recipe, in its order.

    Raises:
        SettingError: An option has no value, or none that is possible.
    """
    found, rest = separate_options(options_parser(), arguments)
    stages: dict[str, Stage] = {name: name for name in typing.get_args(Stage)}
    if found.stage not in stages:
        raise SettingError("--stage", found.stage, "no stage", f"stages are {', '.join(stages)}")
    return (
        DoctorOptions(
            output_dir=found.output_dir,
            stage=stages[found.stage],
            wait=_seconds(found.wait),
            quick=found.quick,
            json=found.json,
        ),
        rest,
    )


def _seconds(given: float | str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise SettingError("--wait", given, "not a number of seconds", "give e.g. 120")
    return value
