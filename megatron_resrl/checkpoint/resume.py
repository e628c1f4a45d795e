"""Finds the checkpoint to continue from."""

from __future__ import annotations

import logging
from pathlib import Path

import torch.distributed as dist

from megatron_resrl.checkpoint import folders
from megatron_resrl.checkpoint.checksums import damaged_files_by_all
from megatron_resrl.checkpoint.folders import CheckpointError
from megatron_resrl.platform.distributed import run_on_rank_zero
from megatron_resrl.platform.phases import named_phase

logger = logging.getLogger(__name__)


def checkpoint_to_resume(output_dir: Path, *, verify_checksums: bool) -> Path | None:
    """The newest undamaged checkpoint of a run. Collective.

    Args:
        output_dir: Of the run.
        verify_checksums: Also read all files and compare their contents, shared out over the
            ranks; else only presence and sizes are looked at.

    Returns:
        Its folder, or None if the run has none yet.

    Raises:
        CheckpointError: There are checkpoints, and all of them are damaged.
    """
    with named_phase("checkpoint verification"):
        found = run_on_rank_zero(lambda: folders.candidates(output_dir), file_error=CheckpointError)
        problems = []
        for path in found:
            problem = _damage(path, verify_checksums)
            if problem is None:
                return path
            problems.append(problem)
            if dist.get_rank() == 0:
                logger.warning("%s; trying the checkpoint before it", problem)
    if problems:
        raise CheckpointError(
            f"every checkpoint in {Path(output_dir) / 'checkpoints'} is damaged; set "
            "checkpoint.resume to never or choose another output_dir to start a new run. "
            + "; ".join(problems)
        )
    return None


def _damage(path: Path, verify_checksums: bool) -> str | None:
    try:
        run_on_rank_zero(lambda: folders.check_whole(path), file_error=CheckpointError)
    except CheckpointError as error:
        return str(error)
    damaged = damaged_files_by_all(path) if verify_checksums else []
    return f"checkpoint {path} is damaged: {', '.join(damaged)}" if damaged else None
