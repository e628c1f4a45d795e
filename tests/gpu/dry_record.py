"""Dry-runs the only rank of a recipe in a process that sees no GPU.

Arguments: file for the record, tokens of a prompt and of a response, settings of the recipe.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_resrl.config.load import load_recipe
from megatron_resrl.planning.dry_run import dry_run
from megatron_resrl.planning.records import PhaseRecord, RankRecord
from megatron_resrl.planning.workload import Workload


def dry_phases(file: Path, workload: Workload, settings: Sequence[str]) -> dict[str, PhaseRecord]:
    """The phases of a dry run, by name.

    Args:
        file: Gets the record.
        workload: Lengths of prompts and responses.
        settings: Of the recipe, as on a command line.
    """
    lengths = (workload.prompt_tokens, workload.response_tokens)
    command = [sys.executable, __file__, str(file), *map(str, lengths), *settings]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    record = RankRecord.from_json(json.loads(file.read_text()))
    return {phase.name: phase for phase in record.phases}


def main(file: str, prompt: str, response: str, *settings: str) -> None:
    workload = Workload(int(prompt), int(response))
    record = dry_run(load_recipe(None, settings), 0, 1, workload)
    Path(file).write_text(json.dumps(record.to_json()))


if __name__ == "__main__":
    main(*sys.argv[1:])
