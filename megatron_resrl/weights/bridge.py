"""The exchange of weights between Hugging Face tensors and megatron-core parameters.

The names are the family's (`policy/families`); merging q/k/v and gate/up and the split over ranks
are mbridge's. Added here: experts split otherwise than the other matrices, the names of experts in
megatron-core's own layers, and the choice of the files that are read.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mbridge.core import LLMBridge
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from safetensors import safe_open
from transformers import PretrainedConfig

from megatron_resrl.policy.families import family_of
from megatron_resrl.weights.files import StoredTensor, stored_tensors


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
        self._names: dict[str, list[str]] = {}

    def _build_config(self) -> TransformerConfig:
        return self._transformer_config

    def _weight_name_mapping_mcore_to_hf(self, name: str) -> list[str]:
        # Asked for every parameter of every export.
        if name not in self._names:
            self._names[name] = self.family.hugging_face_names(name)
        return self._names[name]

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
