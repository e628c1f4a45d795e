"""The command `status`: how a run is getting on, read from its output directory. No torch."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

from megatron_resrl.cli.command import CliCommand
from megatron_resrl.config.yaml_source import read_yaml
from megatron_resrl.errors import InputError, closest
from megatron_resrl.status.folder import read_status
from megatron_resrl.status.report import job_state, report

_WATCH_S = 2.0
"""Seconds between two looks of `--watch`."""
_OPTIONS = ("--json", "--watch")

_HELP = """\
usage: megatron-resrl status RUN [--json] [--watch]

How a run is getting on: state, step, phase, metrics, speed, last sign of life, checkpoints,
restarts.
Reads files only, so that it works on any host that sees them, whether the run lives or not.

  RUN      output_dir of the run, or its recipe
  --json   one JSON object
  --watch  again every 2 s until the run ends
"""


def _status(run: str | None, options: list[str]) -> int:
    for option in options:
        if option not in _OPTIONS:
            meant = closest(option, _OPTIONS)
            hint = f"did you mean {meant}?" if meant else f"options are {', '.join(_OPTIONS)}"
            raise InputError(f"status: unknown option {option!r}; {hint}")
    if run is None:
        raise InputError("status: no run is named; write megatron-resrl status OUTPUT_DIR")
    folder = _folder(run)
    while True:
        found = read_status(folder)
        job = job_state(found.process.get("job"))
        if "--json" in options:
            text = json.dumps(dataclasses.asdict(found) | {"slurm": job})
        else:
            text = report(found, job)
        watches = "--watch" in options
        if watches and sys.stdout.isatty():
            print("\033[H\033[2J", end="")
        print(text, flush=True)
        if not watches or found.state not in ("running", "silent"):
            return 0
        time.sleep(_WATCH_S)


def _folder(run: str) -> Path:
    path = Path(run).expanduser()
    if not path.is_file():
        return path
    content, _ = read_yaml(str(path))
    return Path(str(content.get("output_dir", "outputs/run"))).expanduser()


STATUS = CliCommand(
    _status,
    "how a run is getting on, from its output_dir (RUN [--json] [--watch])",
    lambda: print(_HELP, end=""),
)
