"""Random weights to begin pretraining with, the same in every layout and on every machine.

Each Hugging Face tensor is drawn whole from a generator of its own, whose key is the seed and the
tensor's name, and then takes the way of tensors that are read from files: merged and split over
ranks. One tensor exists at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from megatron.core.models.gpt import GPTModel
from transformers import PretrainedConfig

from megatron_resrl.policy.families.family import Family, Shape
from megatron_resrl.weights.bridge import GroupedNames, PolicyBridge

_TO_THE_RESIDUAL = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")
"""megatron-core's names of the matrices that write to the residual stream."""


@dataclass(frozen=True)
class FreshWeights:
    """How weights are drawn."""

    seed: int
    std: float
    """Standard deviation of matrices, see `FreshTensors`."""


class FreshTensors:
    """Tensors of a model as megatron-core initialises them.

    Matrices, embedding and routers included, are normal with standard deviation `std`; those that
    write to the residual stream have std / sqrt(2 x layers). Norms multiply by 1. Biases are 0.
    """

    def __init__(self, family: Family, fresh: FreshWeights) -> None:
        """
        Args:
            family: The model's.
            fresh: How its weights are drawn.
        """
        self._family = family
        self._fresh = fresh
        self._shapes = family.tensors()
        names = [part for name in _TO_THE_RESIDUAL for part in family.names[name]]
        self._to_the_residual = {name.split(".")[-2] for name in names} | {
            part.split(".")[-2] for part in family.expert_names.get("linear_fc2", ())
        }

    def load_one_hf_weight(self, name: str) -> torch.Tensor:
        """The tensor of a Hugging Face name, whole, in fp32; mbridge's name of the method."""
        shape = self._shapes[name]
        if len(shape) == 1:
            norm = not name.endswith(".bias") and not self._family.zero_centered_norms
            return torch.full(shape, float(norm))
        return self._matrix(name, shape)

    def _matrix(self, name: str, shape: Shape) -> torch.Tensor:
        std = self._fresh.std
        if name.split(".")[-2] in self._to_the_residual:
            std /= (2 * self._family.config["num_hidden_layers"]) ** 0.5
        key = hashlib.sha256(name.encode()).digest()[:16]
        # numpy's generators give the same bits on every processor, torch's do not.
        generator = numpy.random.default_rng([self._fresh.seed, int.from_bytes(key)])
        drawn = generator.standard_normal(shape, dtype=numpy.float32)
        return torch.from_numpy(drawn).mul_(std)


class _FreshBridge(PolicyBridge):
    """Takes tensors from `FreshTensors` instead of files."""

    tensors: FreshTensors

    def _get_safetensor_io(self, weights_path: str) -> Any:
        return self.tensors


@torch.no_grad()
def draw_weights(
    model_chunks: Sequence[GPTModel], hf_config: PretrainedConfig, fresh: FreshWeights
) -> None:
    """Fills this rank's parameters with fresh weights. Collective like `load_weights`.

    Args:
        model_chunks: This rank's bare model chunks.
        hf_config: The model's own configuration.
        fresh: How the weights are drawn.
    """
    first = model_chunks[0]
    bridge = _FreshBridge(hf_config, first.config, first.vocab_size)
    bridge.tensors = FreshTensors(bridge.family, fresh)
    bridge.load_weights([GroupedNames(model) for model in model_chunks], "", memory_efficient=True)
