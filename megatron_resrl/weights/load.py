"""A model directory's weights into the ranks of a run, whichever format they are in."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    ShardedTensor,
    apply_factory_merges,
)
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from megatron.core.dist_checkpointing.utils import extract_sharded_base
from megatron.core.models.gpt import GPTModel
from safetensors import safe_open
from transformers import PretrainedConfig

from megatron_resrl.config.model_place import find_model
from megatron_resrl.errors import InputError
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.platform.dtypes import dtype_name
from megatron_resrl.weights.bridge import GroupedNames, bridge_of
from megatron_resrl.weights.expected import first_few
from megatron_resrl.weights.files import StoredTensor, stored_tensors
from megatron_resrl.weights.hugging_face import load_weights
from megatron_resrl.weights.megatron_failures import named_failures, without_deprecations
from megatron_resrl.weights.megatron_folders import find_checkpoint, holds_megatron
from megatron_resrl.weights.megatron_names import is_weight, spellings
from megatron_resrl.weights.torch_dist_files import TorchDistReader, require_harmless

_NUMBERED_LAYER = re.compile(r"decoder\.layers\.\d+\.")


def load_model_weights(
    model_chunks: Sequence[GPTModel], hf_config: PretrainedConfig, path: str
) -> None:
    """Reads the weights of `model.path` into this rank's parameters. Collective.

    A run's checkpoint, and a directory with Megatron-LM's marker file and no safetensors, are in
    the torch_dist format, out of which every rank reads what is its own; any other is a Hugging
    Face model.

    Args:
        model_chunks: This rank's bare model chunks.
        hf_config: The model's own configuration.
        path: See `find_model`.

    Raises:
        InputError: On all ranks: the directory is not whole or not of this model, or a weight is
            not finite.
    """
    directory = find_model(path).weights
    stored: Mapping[str, StoredTensor] = {}
    if holds_megatron(directory):
        _load_torch_dist(model_chunks, hf_config, find_checkpoint(directory))
    else:
        load_weights(model_chunks, hf_config, str(directory))
        stored = stored_tensors(directory)
    _check_finite(model_chunks, hf_config, directory, stored)


def _check_finite(
    model_chunks: Sequence[GPTModel],
    hf_config: PretrainedConfig,
    directory: Path,
    stored: Mapping[str, StoredTensor],
) -> None:
    """Refuses NaN and infinity among the parameters, on all ranks alike."""
    bridge = bridge_of(hf_config, model_chunks[0])
    wrong = []
    for model in map(GroupedNames, model_chunks):
        bad = [name for name, value in model.named_parameters() if not value.isfinite().all()]
        named = bridge._weight_name_mapping_mcore_local_to_global(model) if bad else {}
        for name in bad:
            wrong += _not_finite(bridge._weight_name_mapping_mcore_to_hf(named[name]), stored)
    found = list(dict.fromkeys(name for of_rank in gather_objects(wrong) for name in of_rank))
    if found:
        dtype = dtype_name(model_chunks[0].config.params_dtype)
        raise InputError(
            f"model.path: {directory} holds weights that are NaN or infinite in {dtype}: "
            f"{first_few(found)}; use a whole copy of the model, or a wider precision.params_dtype"
        )


def _not_finite(names: Sequence[str], stored: Mapping[str, StoredTensor]) -> list[str]:
    """Which of the tensors that one parameter is made of are at fault, with their files."""
    wrong = []
    for name in names:
        if name not in stored:
            wrong.append(name)
            continue
        with safe_open(stored[name].file, framework="pt") as tensors:
            finite = tensors.get_tensor(name).isfinite().all()
        if not finite:
            wrong.append(f"{name} in {stored[name].file.name}")
    # Finite in the files, too large for the parameters' type.
    return wrong or list(names)


@torch.no_grad()
def _load_torch_dist(
    model_chunks: Sequence[GPTModel], hf_config: PretrainedConfig, folder: Path
) -> None:
    require_harmless(folder, objects=False)
    stored = TorchDistReader(folder).tensors
    _check_embeddings(hf_config, folder, stored)
    metadata = {
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        **_arrangement(stored),
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
        loaded = _load_tensors(state, folder, stored)
    for number, model in enumerate(model_chunks):
        keys = model.load_state_dict(loaded[f"model{number}"], strict=False)
        missing = [name for name in keys.missing_keys if not name.endswith("_extra_state")]
        if missing or keys.unexpected_keys:
            raise RuntimeError(f"{folder}: not loaded are {missing} and {keys.unexpected_keys}")


def _arrangement(stored: Collection[str]) -> dict[str, bool]:
    """How a checkpoint arranges layers and experts, in megatron-core's terms, from its keys."""
    return {
        "non_homogeneous_layers": any(_NUMBERED_LAYER.match(key) for key in stored),
        # Gates and ups are two tensors then.
        "singleton_local_shards": any(key.endswith("linear_fc1.weight_w") for key in stored),
    }


def _load_tensors(state: dict[str, Any], folder: Path, stored: Collection[str]) -> dict[str, Any]:
    """`dist_checkpointing.load`, without the values that belong to no rank.

    Those of Megatron-LM are objects of its own classes, which some versions of megatron-core
    unpickle, others refuse, and others look for in a file that is not there.
    """
    wanted, _, factories = load_preprocess(state)
    wanted, _ = extract_sharded_base(wanted)
    _match_keys(list(nested_values(wanted)), folder, stored)
    loaded = TorchDistLoadShardedStrategy().load(wanted, folder)
    return apply_factory_merges(loaded, factories)


def _match_keys(wanted: Sequence[ShardedTensor], folder: Path, stored: Collection[str]) -> None:
    """Gives each tensor the key that it is stored under. Collective.

    Raises:
        InputError: On all ranks: the checkpoint lacks a parameter, or has one more than the model.
    """
    for tensor in wanted:
        tensor.key = next((key for key in spellings(tensor.key) if key in stored), tensor.key)
    used = {key for keys in gather_objects({tensor.key for tensor in wanted}) for key in keys}
    held = {key for key in stored if is_weight(key)}
    for names, fault in ((used - held, "lacks"), (held - used, "holds further")):
        if names:
            raise InputError(
                f"model.path: {folder} {fault} weights, by the model's configuration: "
                f"{first_few(sorted(names))}; the two are not of one model, or the model is of an "
                "unsupported kind"
            )


def _check_embeddings(
    hf_config: PretrainedConfig,
    folder: Path,
    stored: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
) -> None:
    """megatron-core fills rows that are not stored with zeros: right for padding only."""
    if hf_config.tie_word_embeddings and "output_layer.weight" in stored:
        raise InputError(
            f"model.path: {folder} has an output matrix of its own, but config.json ties it to "
            "the embedding (tie_word_embeddings is true); set it to false, or convert the model "
            "again"
        )
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        rows = stored[name][0][0] if name in stored else hf_config.vocab_size
        if rows < hf_config.vocab_size:
            raise InputError(
                f"model.path: {folder} has {rows} rows of {name}, but the vocab_size in "
                f"config.json is {hf_config.vocab_size}; convert the model again"
            )
