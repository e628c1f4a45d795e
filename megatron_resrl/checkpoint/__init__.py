"""Saving and resuming a run: what is on disk is either a whole checkpoint or is ignored."""

from megatron_resrl.checkpoint.checkpoint import TrainerState, load_checkpoint, save_checkpoint
from megatron_resrl.checkpoint.folders import CheckpointError, latest_checkpoint
from megatron_resrl.checkpoint.resume import checkpoint_to_resume
from megatron_resrl.checkpoint.retention import Retention
from megatron_resrl.checkpoint.saver import CheckpointSaver

__all__ = [
    "CheckpointError",
    "CheckpointSaver",
    "Retention",
    "TrainerState",
    "checkpoint_to_resume",
    "latest_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]
