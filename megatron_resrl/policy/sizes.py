"""How large a model and its training state are, from config.json and the recipe alone.

Bytes of a rank are those of weights, gradients and optimizer; activations, the logits and the KV
cache of rollouts come on top. Parameters are counted without padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig
from megatron_resrl.policy.families import Family, find_family
from megatron_resrl.weights.config_json import read_config

_ITEM_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Parameters:
    """Numbers of a model's parameters."""

    embedding: int
    head: int
    """0: tied to the embedding."""
    in_layers: int
    """Of all layers, without their experts."""
    experts: int
    """Of all experts of all layers."""
    layers: int
    """Their number."""

    @property
    def total(self) -> int:
        """Of the whole model."""
        return self.embedding + self.head + self.in_layers + self.experts


@dataclass(frozen=True)
class Disk:
    """Bytes of the files of a run."""

    checkpoint: int
    export: int


@dataclass(frozen=True)
class Sizes(Disk):
    """Of a run: bytes of its files and of one rank's tensors."""

    parameters: int
    weights: int
    """Of the rank that holds most."""
    gradients: int
    optimizer: int
    """fp32 masters, where weights are not fp32 themselves, and two moments."""

    @property
    def rank(self) -> int:
        """Bytes of the rank that holds most."""
        return self.weights + self.gradients + self.optimizer

    @property
    def background_save(self) -> int:
        """Bytes of host memory of a rank while a checkpoint is written in the background.

        A copy of its shards of masters and moments, and at most of all its weights, which replicas
        share out.
        """
        return self.weights + self.optimizer


def count_parameters(family: Family) -> Parameters:
    """Parameters of a model.

    Raises:
        KeyError, TypeError: A size is not in its configuration.
    """
    embedding = head = in_layers = experts = 0
    for name, shape in family.tensors().items():
        count = math.prod(shape)
        if name == "lm_head.weight":
            head += count
        elif ".experts." in name:
            experts += count
        elif name.startswith("model.layers."):
            in_layers += count
        else:  # With the final norm.
            embedding += count
    return Parameters(embedding, head, in_layers, experts, family.config["num_hidden_layers"])


def sizes_of(
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    world_size: int,
    hf_config: Mapping[str, Any],
) -> Sizes:
    """The sizes of a run whose layout fits the number of ranks.

    Args:
        parallel: Layout.
        precision: Number formats.
        world_size: Number of ranks.
        hf_config: config.json of the model.

    Raises:
        KeyError, TypeError: config.json lacks a size, or its architecture is not supported.
    """
    family = find_family(hf_config)
    if family is None:
        raise KeyError("architectures")
    count = count_parameters(family)
    tensor, stages = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    share = math.ceil(count.layers / stages) / count.layers
    ends = max(count.embedding, count.head) if stages > 1 else count.embedding + count.head
    shared = (share * count.in_layers + ends) / tensor
    expert_ranks = parallel.expert_model_parallel_size * (
        parallel.expert_tensor_parallel_size or tensor
    )
    experts = share * count.experts / expert_ranks
    item = _ITEM_BYTES[precision.params_dtype]
    distributed = parallel.use_distributed_optimizer
    masters = 0 if item == 4 else 4
    replicas = max(1, world_size // (tensor * stages)) if distributed else 1
    expert_replicas = max(1, world_size // (expert_ranks * stages)) if distributed else 1
    return Sizes(
        parameters=count.total,
        weights=int(item * (shared + experts)),
        gradients=int(4 * (shared + experts)),
        optimizer=int((masters + 8) * (shared / replicas + experts / expert_replicas)),
        **vars(disk_of(count.total, parallel, precision, world_size)),
    )


def disk_of(
    parameters: int, parallel: ParallelConfig, precision: PrecisionConfig, world_size: int
) -> Disk:
    """The files of a run of so many ranks whose model has so many parameters."""
    item = _ITEM_BYTES[precision.params_dtype]
    replica = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    # One replica writes fp32 weights, which are their own masters, once. Several share out masters
    # differently from weights, and write both.
    apart = parallel.use_distributed_optimizer and world_size > replica
    masters = 4 if apart or item != 4 else 0
    return Disk(checkpoint=parameters * (item + 8 + masters), export=parameters * item)


def checkpoint_bytes(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig, world_size: int
) -> int:
    """Bytes of a checkpoint of a run; 0 where config.json does not say."""
    try:
        hf_config = read_config(model.path, model.tokenizer_path)
        return sizes_of(parallel, precision, world_size, hf_config).checkpoint
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return 0
