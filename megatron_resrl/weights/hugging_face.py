"""Hugging Face weights <-> megatron-core parameters, in any TP x EP x PP layout.

The names are the family's (`policy/families`); merging q/k/v and gate/up, the split over ranks and
the collectives are mbridge's. Added here: experts split otherwise than the other matrices, the
names of experts in megatron-core's own layers, and the choice of the files that are read.
"""

from __future__ import annotations

import copy
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mbridge.core import LLMBridge
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from safetensors import safe_open
from transformers import PretrainedConfig

from megatron_resrl.errors import InputError
from megatron_resrl.platform.phases import named_phase
from megatron_resrl.policy.families import family_of
from megatron_resrl.weights.expected import compare, first_few
from megatron_resrl.weights.files import ShardWriter, StoredTensor, stored_tensors
from megatron_resrl.weights.model_files import write_model_files

logger = logging.getLogger(__name__)

SHARD_BYTES = 5 * 10**9
"""Largest size of one exported safetensors file (Hugging Face's convention)."""


class PolicyBridge(LLMBridge):
    """mbridge's exchange of weights with names that are ours."""

    def __init__(self, hf_config: PretrainedConfig, config: TransformerConfig, rows: int) -> None:
        """
        Args:
            hf_config: The model's own configuration.
            config: The megatron-core configuration made from it.
            rows: Of the embedding and the output matrix, with padding.
        """
        self._transformer_config = config
        self.family = family_of(hf_config)
        # mbridge takes a head size of null, as Mixtral's files have it, for a number.
        hf_config = copy.copy(hf_config)
        hf_config.head_dim = config.kv_channels
        super().__init__(hf_config, dtype=config.params_dtype, make_vocab_size_divisible_by=1)
        self.vocab_size = hf_config.vocab_size
        self.padded_vocab_size = rows

    def _build_config(self) -> TransformerConfig:
        return self._transformer_config

    def _weight_name_mapping_mcore_to_hf(self, name: str) -> list[str]:
        return self.family.hugging_face_names(name)

    def _weight_merge_across_tp(
        self, name: str, parts: list[torch.Tensor], parameter: torch.Tensor
    ) -> torch.Tensor:
        if ".mlp.experts.linear_fc1." in name:
            gates, ups = zip(*(part.chunk(2) for part in parts), strict=True)
            return torch.cat(gates + ups)
        if ".mlp.experts.linear_fc2." in name:
            return torch.cat(parts, dim=1)
        return super()._weight_merge_across_tp(name, parts, parameter)

    def _get_safetensor_io(self, weights_path: str) -> _StoredWeights:
        return _StoredWeights(stored_tensors(weights_path))


class _StoredWeights:
    """Reads for mbridge out of the files that `weight_files` chose; its own reader takes all."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self._stored = stored

    def load_some_hf_weight(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The tensors of these names, by name."""
        names_of: dict[Path, list[str]] = defaultdict(list)
        for name in names:
            names_of[self._stored[name].file].append(name)
        loaded: dict[str, torch.Tensor] = {}
        for file, inside in names_of.items():
            with safe_open(file, framework="pt") as tensors:
                loaded |= {name: tensors.get_tensor(name) for name in inside}
        return loaded


class GroupedNames:
    """A model chunk as mbridge reads it, with Transformer Engine's names of experts.

    `experts.local_experts.3.linear_fc1.weight` is called `experts.linear_fc1.weight3`.
    """

    _LOCAL = re.compile(r"\.experts\.local_experts\.(\d+)\.(linear_fc\d)\.weight$")

    def __init__(self, model: GPTModel) -> None:
        self.decoder = model.decoder
        self._parameters = dict(self._renamed(model.named_parameters()))
        # mbridge asks once per parameter.
        self._state = dict(self._renamed(model.state_dict().items()))

    def _renamed(self, named: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        for name, value in named:
            yield self._LOCAL.sub(r".experts.\2.weight\1", name), value

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The model's parameters by the names that mbridge knows."""
        yield from self._parameters.items()

    def state_dict(self) -> dict[str, Any]:
        """The model's state by the names that mbridge knows."""
        return self._state


def bridge_of(hf_config: PretrainedConfig, model: GPTModel) -> PolicyBridge:
    """The bridge between a model chunk and Hugging Face's tensors.

    Raises:
        InputError: The architecture is not supported.
    """
    return PolicyBridge(hf_config, model.config, model.vocab_size)


@torch.no_grad()
def load_weights(model_chunks: Sequence[GPTModel], hf_config: PretrainedConfig, path: str) -> None:
    """Reads a Hugging Face directory's safetensors into this rank's parameters.

    Collective over the tensor-parallel group and that of experts: their first ranks read and
    scatter. All ranks check the whole directory before that, so that they raise together.

    Args:
        model_chunks: This rank's bare model chunks.
        hf_config: The model's own configuration.
        path: Directory of the model.

    Raises:
        InputError: A file or a tensor is missing, unreadable, or of another shape than
            `hf_config` says, or quantized; named with the directory.
    """
    check_weights(hf_config, path)
    bridge_of(hf_config, model_chunks[0]).load_weights(
        [GroupedNames(model) for model in model_chunks], path, memory_efficient=False
    )


def check_weights(hf_config: PretrainedConfig, path: str) -> None:
    """Compares a directory's safetensors headers with the tensors that `hf_config` asks for.

    Tensors that the model does not have are named in the log; transformers leaves them out too.

    Raises:
        InputError: See `load_weights`.
    """
    found = compare(family_of(hf_config), stored_tensors(path))
    if found.wrong:
        raise InputError(
            f"model.path is {path!r}, whose weights do not fit its config.json: "
            f"{first_few(found.wrong)}; {found.remedy}"
        )
    if found.unexpected:
        logger.warning(
            "model.path %s holds tensors that a model of its config.json does not have; they are "
            "left out: %s",
            path,
            first_few(found.unexpected),
        )


@torch.no_grad()
def export_weights(
    model_chunks: Sequence[GPTModel], hf_config: PretrainedConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """Streams the whole model as Hugging Face tensors, one at a time, on every rank.

    Collective over the tensor-, pipeline- and expert-parallel groups: all their ranks must iterate
    to the end. A tied output matrix is not repeated.

    Yields:
        Hugging Face name and full tensor in the parameters' dtype.
    """
    seen: set[str] = set()
    bridge = bridge_of(hf_config, model_chunks[0])
    for name, tensor in bridge.export_weights([GroupedNames(model) for model in model_chunks]):
        if name not in seen:
            seen.add(name)
            yield name, tensor.detach()


@named_phase("export")
def save_hf_model(
    model_chunks: Sequence[GPTModel],
    hf_config: PretrainedConfig,
    directory: str | Path,
    *,
    tokenizer: str | None = None,
) -> None:
    """Writes the policy as a Hugging Face model directory.

    Sharded safetensors, and copies of the files that the model came with, so that every reader
    takes the two for the same model; config.json says the dtype of the weights, and whether they
    are tied. Collective; global rank 0 writes.

    Args:
        model_chunks: This rank's bare model chunks.
        hf_config: As `read_hf_config` reads it; it knows where the model's files are.
        directory: Made if absent.
        tokenizer: Setting `model.tokenizer_path`.
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
        dtype = str(model_chunks[0].config.params_dtype).removeprefix("torch.")
        write_model_files(hf_config, directory, tokenizer=tokenizer, dtype=dtype)
    dist.barrier()
