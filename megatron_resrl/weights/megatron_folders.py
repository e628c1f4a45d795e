"""Folders of Megatron checkpoints, by Megatron-LM's conventions."""

from __future__ import annotations

from pathlib import Path

from megatron_resrl.config.model_place import newest_checkpoint
from megatron_resrl.errors import InputError
from megatron_resrl.weights.model_files import MARKER


def find_checkpoint(path: Path) -> Path:
    """The folder with the weights.

    Args:
        path: That folder, one with Megatron-LM's marker file that names it, or a run's output_dir
            or `checkpoints`, which stand for the newest checkpoint.

    Raises:
        InputError: There is none, or it is in Megatron-LM's older format.
    """
    if not path.is_dir():
        raise InputError(f"there is no directory {path}")
    if is_torch_dist(path):
        return path
    _refuse_legacy(path)
    marker = path / MARKER
    if not marker.is_file():
        if newest := newest_checkpoint(path):
            return newest
        hint = (
            "; it holds the safetensors of a Hugging Face model"
            if any(path.glob("*.safetensors"))
            else ""
        )
        raise InputError(
            f"{path} holds no Megatron checkpoint: neither .metadata (torch_dist), nor {MARKER}, "
            f"nor checkpoints of a run{hint}"
        )
    named = marker.read_text().strip()
    folder = path / (f"iter_{int(named):07d}" if named.isdigit() else named)
    if not is_torch_dist(folder):
        _refuse_legacy(folder)
        raise InputError(f"{marker} says {named!r}, but {folder} holds no checkpoint")
    return folder


def holds_torch_dist(directory: Path) -> bool:
    """Whether a model's directory holds its weights in megatron-core's format alone."""
    if any(directory.glob("*.safetensors")):
        return False
    return (directory / MARKER).is_file() or is_torch_dist(directory)


def is_torch_dist(folder: Path) -> bool:
    """Whether a folder is a checkpoint in megatron-core's format."""
    return (folder / ".metadata").is_file()


def _refuse_legacy(folder: Path) -> None:
    """Refuses Megatron-LM's older format, one file per rank."""
    if any(folder.glob("mp_rank_*")):
        raise InputError(
            f"{folder} holds mp_rank_* folders, Megatron-LM's older format (--ckpt-format torch); "
            "write it as torch_dist with Megatron-LM: --ckpt-convert-format torch_dist "
            "--ckpt-convert-save DIRECTORY"
        )
