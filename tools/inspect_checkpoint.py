#!/usr/bin/env python3
"""Says what a checkpoint holds, which layout wrote it, and whether it is complete.

    tools/inspect_checkpoint.py outputs/run                           # all checkpoints of a run
    tools/inspect_checkpoint.py outputs/run/checkpoints/step_000012 --verify true
    tools/inspect_checkpoint.py converted-model --tensors true --json true

Exit status: 0 complete, 1 something is wrong with it, 2 there is nothing to inspect.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_resrl.errors import UNUSABLE, InputError, RunError


def inspect(path: Path, verify: bool = False, tensors: bool = False, json: bool = False) -> int:
    """Inspects the checkpoints in a folder.

    Args:
        path: A checkpoint, a run's output_dir, or a converted model.
        verify: Read every file and compare it with its checksum.
        tensors: List all tensors.
        json: Print JSON, one object per checkpoint.

    Returns:
        Exit status.
    """
    from megatron_resrl.platform.cpu import adapt_megatron_core

    # First, because megatron-core warns of what a CPU lacks when it is imported.
    adapt_megatron_core()
    from megatron_resrl.checkpoint.inspection import (
        as_json,
        checkpoint_folders,
        inspect_checkpoint,
        report,
    )

    try:
        found = [inspect_checkpoint(each, verify=verify) for each in checkpoint_folders(path)]
    except (InputError, RunError) as error:
        print(error, file=sys.stderr)
        return UNUSABLE
    for each in found:
        print(as_json(each) if json else report(each, tensors=tensors))
    return int(any(each.problems for each in found))


if __name__ == "__main__":
    sys.exit(auto_cli(inspect, as_positional=True))
