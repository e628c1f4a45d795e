"""Where the files of a model are: in its own directory, in a checkpoint, or in a run's newest."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHECKPOINTS = "checkpoints"
_LATEST = "latest"
_STEP = re.compile(r"step_(\d{6,})")
_OF_MODEL = "hf"
"""Folder of a checkpoint with the model's configuration and tokenizer."""
_INDEX = ".metadata"
"""Of megatron-core's torch_dist format."""


@dataclass(frozen=True)
class ModelPlace:
    """The two directories of a model; one and the same but for checkpoints of runs."""

    files: Path
    """With config.json and the tokenizer."""
    weights: Path
    """With the weights."""


def find_model(path: str | Path) -> ModelPlace:
    """Where the model of a setting such as `model.path` is.

    Args:
        path: Directory of a Hugging Face or converted model, a run's `checkpoints/step_*`, or the
            run's `output_dir` or `checkpoints`, which stand for the newest checkpoint. A run
            without checkpoints stands for the model it exported, in `hf/`. Or a directory that
            Megatron-LM wrote, or its `iter_*` or `release`, which need no config.json.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        return ModelPlace(path, path)
    checkpoint = newest_checkpoint(path)
    if checkpoint is not None and (checkpoint / _OF_MODEL / "config.json").is_file():
        return ModelPlace(checkpoint / _OF_MODEL, checkpoint)
    if (path / _OF_MODEL / "config.json").is_file():
        return ModelPlace(path / _OF_MODEL, path / _OF_MODEL)
    if (path / _INDEX).is_file() and (path.parent / "config.json").is_file():
        return ModelPlace(path.parent, path)
    return ModelPlace(path, path)


def newest_checkpoint(path: Path) -> Path | None:
    """A checkpoint of a run: `path` itself, or the newest of the run or `checkpoints` folder.

    The newest is the one that the folder's `latest` names, or else the one of most steps.
    """
    if _is_checkpoint(path):
        return path
    folder = path / _CHECKPOINTS if (path / _CHECKPOINTS).is_dir() else path
    marker = folder / _LATEST
    if marker.is_file():
        named = folder / marker.read_text(encoding="utf-8", errors="replace").strip()
        if _is_checkpoint(named):
            return named
    steps = {
        int(match[1]): each
        for each in folder.glob("step_*")
        if _is_checkpoint(each) and (match := _STEP.fullmatch(each.name))
    }
    return steps[max(steps)] if steps else None


def _is_checkpoint(path: Path) -> bool:
    return _STEP.fullmatch(path.name) is not None and (path / _INDEX).is_file()


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is no such file.

    Raises:
        ValueError: Not valid JSON; the message holds the position.
        OSError: The file cannot be read.
    """
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))
