"""The command `plan`. Its work is in `planning/`."""

from __future__ import annotations

from megatron_resrl.cli.command import CliCommand, print_settings
from megatron_resrl.cli.start import prepare_megatron
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.schema import Recipe
from megatron_resrl.config.stages import STAGES
from megatron_resrl.planning.command import run_plan
from megatron_resrl.planning.options import options_parser, take_options


def _plan(path: str | None, overrides: list[str]) -> int:
    options, settings = take_options(overrides)
    recipe = load_recipe(path, settings, STAGES[options.stage])
    prepare_megatron(recipe, reads_files=False)
    return run_plan(recipe, options)


def _print_help() -> None:
    options_parser().print_help()
    summary = "Forecasts memory, traffic and seconds of a recipe on GPUs; starts nothing."
    print_settings("plan", summary, Recipe)


PLAN = CliCommand(
    _plan,
    """\
memory, traffic, waits and seconds of a job on GPUs, and what to change where it does
not fit; needs no GPU and no weights (--stage NAME, --nodes N --gpus_per_node N
--gpu h100, --search, --json; `plan --help` has all)""",
    _print_help,
    settings_of=lambda arguments: take_options(arguments)[1],
)
