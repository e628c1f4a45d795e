"""Contents of a Megatron checkpoint of a model: parameters, keys, and how ranks share them."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
)
from transformers import PretrainedConfig

from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig
from megatron_resrl.errors import InputError
from megatron_resrl.platform.cpu import adapt_megatron_core
from megatron_resrl.policy.families import Family

if TYPE_CHECKING:
    from megatron_resrl.weights.bridge import PolicyBridge


@dataclass(frozen=True)
class Piece:
    """A part of a parameter that is stored as one block, without tensor parallelism."""

    key: str
    """Key of the stored tensor."""
    global_shape: tuple[int, ...]
    """Shape of the stored tensor; a layer axis and an expert axis may come first."""
    offset: tuple[int, ...]
    """Offset of the block in the stored tensor."""
    shape: tuple[int, ...]
    """Shape of the block, without the leading axes."""

    @property
    def leading(self) -> int:
        """Number of leading axes; the block has length 1 along these axes."""
        return len(self.global_shape) - len(self.shape)


@dataclass(frozen=True)
class Parameter:
    """One parameter of the model on one rank."""

    name: str
    """Name in megatron-core's own layers."""
    bridge_name: str
    """Name in mbridge."""
    shape: tuple[int, ...]
    partition_dim: int | None
    """The dimension that tensor-parallel ranks share; None: each holds all of it."""
    pieces: tuple[Piece, ...]
    """One piece; or two, gate and up projections, which ranks share separately."""
    hf_shapes: dict[str, tuple[int, ...]]
    """Name -> shape of the Hugging Face tensors that make up the parameter, in order."""

    @property
    def is_vocabulary(self) -> bool:
        """Whether the rows are the vocabulary."""
        return self.name in ("embedding.word_embeddings.weight", "output_layer.weight")


@dataclass(frozen=True)
class ModelLayout:
    """Everything a checkpoint of the model holds."""

    parameters: tuple[Parameter, ...]
    objects: tuple[tuple[str, str], ...]
    """Empty extra states that megatron-core's layers ask for: name and key."""
    num_layers: int
    bridge: PolicyBridge
    """Converts one tensor at a time."""

    def stage(self, name: str, stages: int) -> int:
        """Pipeline rank, of `stages`, that holds the parameter or object `name`.

        Stages differ by one layer where the layers do not divide.
        """
        layer = re.match(r"decoder\.layers\.(\d+)\.", name)
        if layer:
            return int(layer[1]) * stages // self.num_layers
        return 0 if name.startswith("embedding.") else stages - 1


def model_layout(hf_config: PretrainedConfig, vocabulary_rows: int) -> ModelLayout:
    """Layout of the model, from an empty model on one rank; no memory is allocated for weights.

    Args:
        hf_config: The model's own configuration.
        vocabulary_rows: Rows of the embedding and of the output matrix, with padding.

    Raises:
        InputError: This process already belongs to process groups.
    """
    adapt_megatron_core()
    # These need the adapted library.
    from megatron.core import parallel_state

    from megatron_resrl.policy.gpt import build_empty_model
    from megatron_resrl.policy.model_config import transformer_config
    from megatron_resrl.weights.bridge import GroupedNames, bridge_of

    fields = {"use_cpu_initialization": True, "moe_grouped_gemm": False}
    with _world_of_one():
        config = transformer_config(
            hf_config, ModelConfig("", megatron=fields), ParallelConfig(), PrecisionConfig()
        )
        model = build_empty_model(hf_config, config, vocabulary_rows)
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        state = model.sharded_state_dict(
            metadata={"dp_cp_group": group, "singleton_local_shards": False}
        )
        bridge = bridge_of(hf_config, model)
        # No dtype conversion here; the callers do it.
        bridge.dtype = None
        named = zip(model.named_parameters(), GroupedNames(model).named_parameters(), strict=True)
        parameters = tuple(
            _parameter(name, bridge_name, parameter, state[name], bridge)
            for (name, parameter), (bridge_name, _) in named
        )
    objects = tuple(
        (name, value.unique_key)
        for name, value in state.items()
        if isinstance(value, ShardedObject)
    )
    return ModelLayout(parameters, objects, config.num_layers, bridge)


def padded_rows(vocab_size: int, tensor_parallel: int, divisible_by: int) -> int:
    """Vocabulary rows so that each rank holds a multiple of `divisible_by`, Megatron's rule."""
    multiple = tensor_parallel * divisible_by
    return math.ceil(vocab_size / multiple) * multiple


def check_sizes(family: Family, tensor_parallel: int, pipeline_parallel: int) -> None:
    """Refuses sizes that the model cannot be shared out over.

    Raises:
        InputError: Names the option, its value, and what would be right.
    """
    for option, size in (
        ("tensor-model-parallel-size", tensor_parallel),
        ("pipeline-model-parallel-size", pipeline_parallel),
    ):
        if size < 1:
            raise InputError(f"--{option} is {size}; it must be at least 1")
    layers = family.config["num_hidden_layers"]
    if pipeline_parallel > layers:
        raise InputError(
            f"--pipeline-model-parallel-size is {pipeline_parallel}, more than the model's "
            f"{layers} layers; choose at most {layers}"
        )
    for what, rule in family.indivisible(tensor_parallel, experts=True):
        raise InputError(
            f"--tensor-model-parallel-size is {tensor_parallel}, and the model has {what}; choose "
            f"a size that {rule}"
        )


def _parameter(
    name: str,
    bridge_name: str,
    parameter: torch.nn.Parameter,
    stored: ShardedTensor | ShardedTensorFactory,
    bridge: PolicyBridge,
) -> Parameter:
    blocks = stored.build() if isinstance(stored, ShardedTensorFactory) else [stored]
    names, tensors = bridge._weight_to_hf_format(bridge_name, parameter.detach())
    split = getattr(parameter, "tensor_model_parallel", False)
    # megatron-core sets this attribute together with the one above.
    dimension = getattr(parameter, "partition_dim", None)
    return Parameter(
        name=name,
        bridge_name=bridge_name,
        shape=tuple(parameter.shape),
        partition_dim=dimension if split else None,
        pieces=tuple(
            Piece(
                key=block.key,
                global_shape=tuple(block.global_shape),
                offset=tuple(block.global_offset),
                shape=tuple(block.local_shape),
            )
            for block in blocks
        ),
        hf_shapes={
            hf_name: tuple(tensor.shape) for hf_name, tensor in zip(names, tensors, strict=True)
        },
    )


@contextlib.contextmanager
def _world_of_one() -> Iterator[None]:
    """Process groups of this process alone, which megatron-core's modules ask for."""
    from megatron.core import parallel_state

    if dist.is_initialized():
        raise InputError(
            "checkpoints are converted by one process without process groups; call it outside "
            "of a run"
        )
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallel_state.initialize_model_parallel()
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
