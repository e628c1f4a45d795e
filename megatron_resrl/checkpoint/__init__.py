"""Saving and resuming a run: what is on disk is either a whole checkpoint or is ignored."""

from megatron_resrl.checkpoint.checkpoint import TrainerState, load_checkpoint, save_checkpoint
from megatron_resrl.checkpoint.folders import CheckpointError, latest_checkpoint

__all__ = [
    "CheckpointError",
    "TrainerState",
    "latest_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]
