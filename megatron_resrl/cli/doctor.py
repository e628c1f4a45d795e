"""The command `doctor`. Its work is in `doctor/`."""

from __future__ import annotations

from megatron_resrl.cli.command import CliCommand, print_settings
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.schema import Recipe
from megatron_resrl.config.stages import STAGES
from megatron_resrl.doctor.command import run_doctor
from megatron_resrl.doctor.options import options_parser, take_options


def _doctor(path: str | None, overrides: list[str]) -> int:
    options, settings = take_options(overrides)
    given = path is not None or settings
    recipe = load_recipe(path, settings, STAGES[options.stage]) if given else None
    return run_doctor(recipe, options)


def _print_help() -> None:
    options_parser().print_help()
    print_settings("doctor", "Looks at the machines of a job, and says what to change.", Recipe)


DOCTOR = CliCommand(
    _doctor,
    """\
what is wrong with the machines, each with its remedy: versions, GPUs, hosts, output
folder, network; alone, or as the ranks of a job (--quick, --json; `doctor --help`)""",
    _print_help,
    settings_of=lambda arguments: take_options(arguments)[1],
)
