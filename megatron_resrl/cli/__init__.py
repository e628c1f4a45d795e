"""The command line: one small file per command; the work is in the rooms below.

A new command is a file that makes a `CliCommand`, and a line in `commands.py`.
"""

from megatron_resrl.cli.commands import COMMANDS
from megatron_resrl.cli.main import main, run

__all__ = ["COMMANDS", "main", "run"]
