"""Hugging Face weights <-> megatron-core parameters, in any TP x PP layout.

Names, the merging of q/k/v and gate/up, and the split over ranks are mbridge's. Added here: the
names of separate norms (mbridge knows the fused ones of Transformer Engine) and tied embeddings
for every family.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mbridge import AutoBridge
from mbridge.core.bridge import _MODEL_REGISTRY, Bridge
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers import AutoModelForCausalLM, PretrainedConfig

from megatron_resrl.errors import InputError
from megatron_resrl.weights.files import ShardWriter, stored_shapes

SHARD_BYTES = 5 * 10**9
"""Largest size of one exported safetensors file (Hugging Face's convention)."""


class _PolicyBridge:
    """What mbridge's bridges lack for our models; put before one of them in the base classes."""

    def __init__(self, hf_config: PretrainedConfig, config: TransformerConfig, rows: int) -> None:
        self._transformer_config = config
        super().__init__(hf_config, dtype=config.params_dtype, make_vocab_size_divisible_by=1)
        self.vocab_size = hf_config.vocab_size
        self.padded_vocab_size = rows

    def _build_config(self) -> TransformerConfig:
        return self._transformer_config

    def _adjust_mapping_for_shared_weights(self) -> None:
        # A copy: mbridge writes into a mapping that all instances of the class share.
        tied = self.hf_config.tie_word_embeddings
        output = "model.embed_tokens.weight" if tied else "lm_head.weight"
        self._DIRECT_MAPPING = {**type(self)._DIRECT_MAPPING, "output_layer.weight": output}

    def _weight_name_mapping_mcore_to_hf(self, name: str) -> list[str]:
        if name.endswith(".input_layernorm.weight"):
            return [f"model.layers.{name.split('.')[2]}.input_layernorm.weight"]
        if name.endswith(".pre_mlp_layernorm.weight"):
            return [f"model.layers.{name.split('.')[2]}.post_attention_layernorm.weight"]
        return super()._weight_name_mapping_mcore_to_hf(name)

    def _get_actual_hf_path(self, weight_path: str) -> str:
        return weight_path


def _bridge(hf_config: PretrainedConfig, model: GPTModel) -> Bridge:
    if hf_config.model_type not in _MODEL_REGISTRY:
        raise InputError(
            f"model type {hf_config.model_type!r} has no weight mapping; mbridge knows "
            f"{', '.join(AutoBridge.list_supported_models())}"
        )
    family = _MODEL_REGISTRY[hf_config.model_type]
    bridge_class = type(f"Policy{family.__name__}", (_PolicyBridge, family), {})
    return bridge_class(hf_config, model.config, model.vocab_size)


@torch.no_grad()
def load_weights(model_chunks: Sequence[GPTModel], hf_config: PretrainedConfig, path: str) -> None:
    """Reads a Hugging Face directory's safetensors into this rank's parameters.

    Collective over the tensor-parallel group: its first rank reads and scatters. All ranks check
    the whole directory before that, so that they raise together.

    Args:
        model_chunks: This rank's bare model chunks.
        hf_config: The model's own configuration.
        path: Directory of the model.

    Raises:
        InputError: A file or a tensor is missing, unreadable, or of another shape than
            `hf_config` says; named with the directory.
    """
    check_weights(hf_config, path)
    _bridge(hf_config, model_chunks[0]).load_weights(
        list(model_chunks), path, memory_efficient=False
    )


def check_weights(hf_config: PretrainedConfig, path: str) -> None:
    """Compares a directory's safetensors headers with the tensors that `hf_config` asks for.

    Raises:
        InputError: See `load_weights`.
    """
    with torch.device("meta"):
        wanted = AutoModelForCausalLM.from_config(hf_config).named_parameters()
    shapes = stored_shapes(path)
    wrong = []
    for name, parameter in wanted:
        if name not in shapes:
            wrong.append(f"{name} is missing")
        elif shapes[name] != tuple(parameter.shape):
            wrong.append(f"{name} is {shapes[name]} instead of {tuple(parameter.shape)}")
    if wrong:
        listed = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise InputError(
            f"model.path is {path!r}, whose weights do not fit its config.json: {listed}"
        )


@torch.no_grad()
def export_weights(
    model_chunks: Sequence[GPTModel], hf_config: PretrainedConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Streams the whole model as Hugging Face tensors, one at a time, on every rank.

    Collective over the tensor- and pipeline-parallel groups: all their ranks must iterate to the
    end. A tied output matrix is not repeated.

    Yields:
        Hugging Face name and full tensor in the parameters' dtype.
    """
    seen: set[str] = set()
    bridge = _bridge(hf_config, model_chunks[0])
    for name, tensor in bridge.export_weights(list(model_chunks)):
        if name not in seen:
            seen.add(name)
            yield name, tensor.detach()


def save_hf_model(
    model_chunks: Sequence[GPTModel],
    hf_config: PretrainedConfig,
    tokenizer: Any,
    directory: str | Path,
) -> None:
    """Writes the policy as a Hugging Face model directory.

    Sharded safetensors, configuration, tokenizer, and the generation configuration of the model
    that `hf_config` was read from, if it has one (its end-of-sequence tokens are often there
    only). Collective; global rank 0 writes.
    """
    directory = Path(directory)
    writes = dist.get_rank() == 0
    if writes:
        directory.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(directory, SHARD_BYTES)
    for name, tensor in export_weights(model_chunks, hf_config):
        if writes:
            writer.add(name, tensor)
    if writes:
        writer.close()
        config = copy.deepcopy(hf_config)
        config.dtype = model_chunks[0].config.params_dtype
        config.save_pretrained(directory)
        generation = Path(hf_config.name_or_path) / "generation_config.json"
        if generation.is_file():
            shutil.copyfile(generation, directory / generation.name)
        tokenizer.save_pretrained(directory)
    dist.barrier()
