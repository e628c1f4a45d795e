"""The command `launch`. Its work is in `launch/`."""

from __future__ import annotations

from megatron_resrl.cli.command import CliCommand, print_settings
from megatron_resrl.cli.start import prepare_megatron
from megatron_resrl.config.schema import Recipe
from megatron_resrl.launch.command import run_launch
from megatron_resrl.launch.options import options_parser, take_options


def _launch(path: str | None, arguments: list[str]) -> int:
    recipes, rest = _recipes(path, arguments)
    return run_launch(recipes, rest, prepare_megatron)


def _recipes(path: str | None, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The recipes of a chain, and what stands behind them."""
    more = next((n for n, word in enumerate(arguments) if word.startswith("--")), len(arguments))
    return ([path] if path else []) + arguments[:more], arguments[more:]


def _print_help() -> None:
    options_parser().print_help()
    print_settings("launch", "Prints or submits a batch script for Slurm.", Recipe)


LAUNCH = CliCommand(
    _launch,
    """\
a batch script for Slurm that runs a recipe, or a chain of recipes, until it is done;
--submit submits it (--nodes N --gpus_per_node N --time 04:00:00 --requeue ...;
`launch --help` has all)""",
    _print_help,
    settings_of=lambda arguments: take_options(_recipes(None, arguments)[1])[1],
)
