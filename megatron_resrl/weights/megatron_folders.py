"""Folders of Megatron checkpoints, by Megatron-LM's conventions."""

from __future__ import annotations

from pathlib import Path

from megatron_resrl.config.model_place import newest_checkpoint, read_json
from megatron_resrl.errors import InputError

MARKER = "latest_checkpointed_iteration.txt"
"""Megatron-LM's file that names the newest checkpoint beside it."""
_INDEX = ".metadata"
_DESCRIPTION = "metadata.json"
"""megatron-core's, of the format of a checkpoint."""
_FORMAT = "torch_dist"
_RANKS = "mp_rank_*"


def find_checkpoint(path: Path) -> Path:
    """The folder with the weights.

    Args:
        path: That folder, one with Megatron-LM's marker file that names it, or a run's output_dir
            or `checkpoints`, which stand for the newest checkpoint.

    Raises:
        InputError: There is none, or it is in another format than torch_dist.
    """
    if not path.is_dir():
        raise InputError(f"there is no directory {path}")
    _refuse_other_formats(path)
    if is_torch_dist(path):
        return path
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
    named = marker.read_text(encoding="utf-8", errors="replace").strip()
    folder = path / (f"iter_{int(named):07d}" if named.isdigit() else named)
    _refuse_other_formats(folder)
    if not is_torch_dist(folder):
        raise InputError(
            f"{marker} says {named!r}, but {folder} holds no checkpoint; copy it again"
        )
    return folder


def holds_megatron(directory: Path) -> bool:
    """Whether a model's directory holds its weights in one of Megatron's formats alone."""
    if any(directory.glob("*.safetensors")):
        return False
    named = (directory / MARKER).is_file() or is_torch_dist(directory)
    return named or any(directory.glob(_RANKS))


def is_torch_dist(folder: Path) -> bool:
    """Whether a folder is a checkpoint in megatron-core's format."""
    return (folder / _INDEX).is_file()


def _refuse_other_formats(folder: Path) -> None:
    """Refuses Megatron-LM's formats other than torch_dist.

    Its older format has one file per rank. megatron-core describes its own formats in
    metadata.json; without it, the index is one of torch's alone.
    """
    found = None
    if any(folder.glob(_RANKS)):
        found = "mp_rank_* folders, Megatron-LM's older format (--ckpt-format torch)"
    elif (folder / _DESCRIPTION).is_file():
        kind = _backend(folder / _DESCRIPTION)
        found = None if kind == _FORMAT else f"a checkpoint in the format {kind!r}"
    elif is_torch_dist(folder) and not (folder / "common.pt").is_file():
        found = "torch's index without megatron-core's (--ckpt-format fsdp_dtensor or torch_dcp)"
    if found is not None:
        raise InputError(
            f"{folder} holds {found}; supported is torch_dist, which Megatron-LM writes with "
            "--ckpt-format torch_dist, or from an older checkpoint with --ckpt-convert-format "
            "torch_dist --ckpt-convert-save DIRECTORY"
        )


def _backend(description: Path) -> str:
    try:
        return str(read_json(description)["sharded_backend"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{description} cannot be read ({error!r}); copy it again") from error
