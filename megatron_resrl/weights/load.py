"""A model directory's weights into the ranks of a run, whichever format they are in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.models.gpt import GPTModel
from transformers import PretrainedConfig

from megatron_resrl.errors import InputError
from megatron_resrl.weights.hugging_face import load_weights
from megatron_resrl.weights.megatron_failures import named_failures, without_deprecations
from megatron_resrl.weights.megatron_folders import find_checkpoint
from megatron_resrl.weights.model_files import MARKER
from megatron_resrl.weights.torch_dist_files import TorchDistReader, require_harmless


def load_model_weights(
    model_chunks: Sequence[GPTModel], hf_config: PretrainedConfig, path: str
) -> None:
    """Reads the weights of `model.path` into this rank's parameters. Collective.

    A directory with Megatron-LM's marker file and no safetensors holds a torch_dist checkpoint,
    out of which every rank reads what is its own; any other is a Hugging Face model.

    Args:
        model_chunks: This rank's bare model chunks.
        hf_config: The model's own configuration.
        path: Directory of the model.

    Raises:
        InputError: The directory is not whole or not of this model.
    """
    directory = Path(path)
    if any(directory.glob("*.safetensors")) or not (directory / MARKER).is_file():
        load_weights(model_chunks, hf_config, path)
    else:
        _load_torch_dist(model_chunks, hf_config, find_checkpoint(directory))


@torch.no_grad()
def _load_torch_dist(
    model_chunks: Sequence[GPTModel], hf_config: PretrainedConfig, folder: Path
) -> None:
    require_harmless(folder, objects=False)
    _check_vocabulary(hf_config, folder)
    metadata = {
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "singleton_local_shards": False,
    }
    # Extra states hold nothing here, and which there are depends on the layers that wrote them.
    state: dict[str, Any] = {
        f"model{number}": {
            name: value
            for name, value in model.sharded_state_dict(metadata=metadata).items()
            if not isinstance(value, ShardedObject)
        }
        for number, model in enumerate(model_chunks)
    }
    failure = f"model.path: {folder} cannot be read into the model"
    with named_failures(failure, InputError), without_deprecations():
        loaded = dist_checkpointing.load(state, str(folder))
    for number, model in enumerate(model_chunks):
        keys = model.load_state_dict(loaded[f"model{number}"], strict=False)
        missing = [name for name in keys.missing_keys if not name.endswith("_extra_state")]
        if missing or keys.unexpected_keys:
            raise RuntimeError(f"{folder}: not loaded are {missing} and {keys.unexpected_keys}")


def _check_vocabulary(hf_config: PretrainedConfig, folder: Path) -> None:
    """megatron-core fills rows that are not stored with zeros: right for padding only."""
    stored = TorchDistReader(folder).tensors
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        rows = stored[name][0][0] if name in stored else hf_config.vocab_size
        if rows < hf_config.vocab_size:
            raise InputError(
                f"model.path: {folder} has {rows} rows of {name}, but the vocab_size in "
                f"config.json is {hf_config.vocab_size}; convert the model again"
            )
