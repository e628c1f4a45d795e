"""From the command line to a command, and from its error to the exit status."""

from __future__ import annotations

import logging
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from megatron_resrl import __version__
from megatron_resrl.cli.commands import COMMANDS
from megatron_resrl.cli.start import rank_name
from megatron_resrl.config.problems import RecipeError
from megatron_resrl.config.stages import STAGES
from megatron_resrl.errors import UNUSABLE, InputError, RunError, exit_status
from megatron_resrl.observe.log_format import logs_json
from megatron_resrl.platform.ending import process_ends_with_block, record_failure

_USAGE = """\
usage: megatron-resrl COMMAND [RECIPE.yaml] [--section.setting VALUE ...]

Reinforcement learning with verifiable rewards on megatron-core, and the stages before it.

commands:
{commands}

Settings come from the recipe and from the command line, which wins:
  megatron-resrl train recipe.yaml --optimizer.lr 1e-5 --data.train_files '[a.jsonl, b.jsonl]'
  torchrun --nproc-per-node 2 -m megatron_resrl train recipe.yaml \\
      --parallel.tensor_model_parallel_size 2

`megatron-resrl COMMAND --help` lists all settings; `megatron-resrl --version` the version.
"""


def run() -> NoReturn:
    """Runs the command of this process and ends the process with its status."""
    with process_ends_with_block():
        sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Command line without the program's name; default: this process's.

    Returns:
        Exit status: 0 done, 1 `check` found problems or what `plan` was asked about does not fit,
        2 the run could not start or ended with an error that explains itself; that of
        `Interrupted` if a signal ended it early, 130 if Ctrl-C did before there was a step to
        finish.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_USAGE.format(commands=_command_lines()), end="")
        return 0 if given else UNUSABLE
    if given[0] == "--version":
        print(f"megatron-resrl {__version__}")
        return 0
    name, rest = given[0], given[1:]
    if name not in COMMANDS:
        print(f"unknown command {name!r}; commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return UNUSABLE
    if "-h" in rest or "--help" in rest:
        COMMANDS[name].print_help()
        return 0
    recipe = rest.pop(0) if rest and not rest[0].startswith("--") else None
    try:
        return COMMANDS[name].run(recipe, rest)
    except RecipeError as error:
        # The ranks of a node find the same problems; a file may be missing on one node only.
        return _ended(error, once_per_host=True)
    except (InputError, RunError) as error:
        return _ended(error, once_per_host=error.common)
    except KeyboardInterrupt:
        return _ended(KeyboardInterrupt(_where_stopped(name)), once_per_host=True)


def _command_lines() -> str:
    width = max(map(len, COMMANDS))
    indent = " " * (width + 3)
    return "\n".join(
        f"  {name:<{width}} {textwrap.indent(command.usage, indent).lstrip()}"
        for name, command in COMMANDS.items()
    )


def _ended(error: BaseException, *, once_per_host: bool = False) -> int:
    """Says why the process ends, also to torchrun. Returns its status."""
    if not once_per_host or os.environ.get("LOCAL_RANK", "0") == "0":
        if logs_json():
            logging.getLogger("megatron_resrl").error("%s", error)
        else:
            print(f"{rank_name()}{error}", file=sys.stderr)
    record_failure(error)
    return exit_status(error)


def _where_stopped(command: str) -> str:
    phases = sys.modules.get("megatron_resrl.platform.phases")
    step = phases.current_step() if phases else None
    if command not in STAGES:
        return "stopped by Ctrl-C"
    if step is None:
        return "stopped by Ctrl-C before the first step; the same command starts again"
    return (
        f"stopped by Ctrl-C in step {step}, which is lost; the same command continues from the "
        "newest checkpoint"
    )
