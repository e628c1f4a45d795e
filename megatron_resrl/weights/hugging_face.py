"""Hugging Face weights <-> megatron-core parameters, in any TP x PP layout.

Names, the merging of q/k/v and gate/up, and the split over ranks are mbridge's. Added here: the
names of separate norms (mbridge knows the fused ones of Transformer Engine) and tied embeddings
for every family.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mbridge import AutoBridge
from mbridge.core.bridge import _MODEL_REGISTRY, Bridge
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from safetensors.torch import save_file
from transformers import PretrainedConfig

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
        raise ValueError(
            f"model type {hf_config.model_type!r} has no weight mapping; mbridge knows "
            f"{', '.join(AutoBridge.list_supported_models())}"
        )
    family = _MODEL_REGISTRY[hf_config.model_type]
    bridge_class = type(f"Policy{family.__name__}", (_PolicyBridge, family), {})
    return bridge_class(hf_config, model.config, model.vocab_size)


@torch.no_grad()
def load_weights(model_chunks: Sequence[GPTModel], hf_config: PretrainedConfig, path: str) -> None:
    """Reads a Hugging Face directory's safetensors into this rank's parameters.

    Collective over the tensor-parallel group: its first rank reads and scatters.

    Raises:
        ValueError: A tensor is missing, named with the directory.
    """
    if not any(Path(path).glob("*.safetensors")):
        raise ValueError(f"model.path is {path!r}, which has no *.safetensors file")
    _bridge(hf_config, model_chunks[0]).load_weights(
        list(model_chunks), path, memory_efficient=False
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
    """Writes the policy as a Hugging Face model directory (sharded safetensors, config, tokenizer).

    Collective; global rank 0 writes.
    """
    directory = Path(directory)
    writes = dist.get_rank() == 0
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in export_weights(model_chunks, hf_config):
        if not writes:
            continue
        held = sum(value.nbytes for value in shards[-1].values())
        if shards[-1] and held + tensor.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor.cpu().contiguous().clone()
    if writes:
        directory.mkdir(parents=True, exist_ok=True)
        _write_shards(shards, directory)
        hf_config.dtype = next(iter(shards[0].values())).dtype
        hf_config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    dist.barrier()


def _write_shards(shards: list[dict[str, torch.Tensor]], directory: Path) -> None:
    if len(shards) == 1:
        save_file(shards[0], directory / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
