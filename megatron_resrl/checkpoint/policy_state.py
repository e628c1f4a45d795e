"""A policy's state as megatron-core's sharded state dict, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import load_sharded_metadata
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy

from megatron_resrl.checkpoint import random_state
from megatron_resrl.checkpoint.folders import CheckpointError
from megatron_resrl.checkpoint.host_copies import HostMemory
from megatron_resrl.checkpoint.optimizer_state import OptimizerState, live_optimizer_tensors
from megatron_resrl.checkpoint.writer import InProcessSaveStrategy, storage_of
from megatron_resrl.platform.dtypes import dtype_name
from megatron_resrl.policy.policy import Policy
from megatron_resrl.weights.megatron_failures import named_failures, without_deprecations

_MODEL_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
)
_REPLICA = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
)
_LAYOUT_SHORT = {
    "tensor_model_parallel_size": "TP",
    "pipeline_model_parallel_size": "PP",
    "virtual_pipeline_model_parallel_size": "VPP",
    "context_parallel_size": "CP",
    "expert_model_parallel_size": "EP",
    "expert_tensor_parallel_size": "ETP",
}


def model_identity(policy: Policy) -> dict[str, Any]:
    """Facts of the model that must be equal for a checkpoint to fit."""
    return {name: getattr(policy.hf_config, name, None) for name in _MODEL_FIELDS}


def optimizer_identity(policy: Policy) -> dict[str, Any]:
    """Settings that must be equal for the optimizer's state to fit, by their recipe names."""
    return {
        "precision.params_dtype": dtype_name(policy.config.params_dtype),
        "parallel.use_distributed_optimizer": (
            policy.chunks[0].ddp_config.use_distributed_optimizer
        ),
    }


def layout_change(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Two layouts in words: TP1 x DP2 -> TP2."""

    def size(sizes: dict[str, Any], name: str) -> int:
        return sizes.get(name) or 1

    names = [name for name in _LAYOUT_SHORT if max(size(before, name), size(now, name)) > 1]

    def words(sizes: dict[str, Any]) -> str:
        copies = sizes["world_size"] // math.prod(size(sizes, name) for name in _REPLICA)
        parts = [f"{_LAYOUT_SHORT[name]}{size(sizes, name)}" for name in names]
        return " x ".join([*parts, f"DP{copies}"] if copies > 1 or not parts else parts)

    return f"{words(before)} -> {words(now)}"


def layout(policy: Policy) -> dict[str, Any]:
    """How the ranks share the model; random states are only restored in the same layout."""
    sizes = {name: getattr(policy.config, name) for name in _LAYOUT_SHORT}
    return sizes | {"world_size": dist.get_world_size()}


def capture(
    policy: Policy,
    folder: Path,
    *,
    group: dist.ProcessGroup | None = None,
    copies: HostMemory | None = None,
) -> Callable[[], dict[str, str]]:
    """Fixes weights, optimizer, schedule and random states of all ranks. Collective.

    The optimizer's masters and moments are stored from where they are, in the shape of the weights
    they belong to.

    Args:
        policy: With an optimizer.
        folder: Exists on all hosts; rank 0 already writes megatron-core's common.pt into it.
        group: Process group over which the ranks agree while they write.
        copies: Training goes on while the rest is written, perhaps in a thread: what it changes is
            copied to this memory first. None: the policy must not change until all is written.

    Returns:
        Writes this rank's shards and returns the SHA-256 of its files by name. Collective over
        `group`.

    Raises:
        CheckpointError: Also by the function returned; a rank could not write its shards.
    """
    state = sharded_state(policy)
    state["scheduler"] = policy.scheduler.state_dict()
    state["random"] = _random_shard(random_state.capture())
    live = None if copies is None else _live_storages(policy)
    own = InProcessSaveStrategy(group, live, copies)
    strategy = FullyParallelSaveStrategyWrapper(own, _replicas())
    failure = f"checkpoint {folder} could not be written"
    with named_failures(failure, CheckpointError), without_deprecations():
        request = dist_checkpointing.save(
            state, str(folder), sharded_strategy=strategy, async_sharded_save=True
        )

    def write() -> dict[str, str]:
        with named_failures(failure, CheckpointError):
            digests = request.async_fn(*request.async_fn_args)
            if dist.get_rank() == 0:
                save_config(CheckpointingConfig(strategy.backend, strategy.version), str(folder))
            return digests

    return write


def load(policy: Policy, path: Path, *, same_layout: bool) -> None:
    """Reads what `save` wrote into the policy. Collective.

    Without an optimizer in `policy`, only the weights are read.

    Args:
        policy: Of the same model and optimizer.
        path: A whole checkpoint.
        same_layout: Also restore the random generators.

    Raises:
        CheckpointError: A tensor of the policy is not in the checkpoint.
    """
    state = _sharded_weights(policy)
    optimizer = None
    if policy.trainable:
        optimizer = OptimizerState(policy, state, _metadata(), is_loading=True)
        state["optimizer"] = optimizer.sharded
        if same_layout:
            state["random"] = _random_shard(None)
    strategy = FullyParallelLoadStrategyWrapper(TorchDistLoadShardedStrategy(), _replicas())
    failure = f"checkpoint {path} could not be read into the policy"
    with named_failures(failure, CheckpointError), without_deprecations():
        absent = _leave_out_extra_states_not_in(path, state)
        loaded = dist_checkpointing.load(state, str(path), sharded_strategy=strategy)
    for name, module in _named_chunks(policy):
        module.load_state_dict(loaded[name] | dict.fromkeys(absent[name]))
    if optimizer is not None:
        optimizer.load(loaded["optimizer"], loaded["scheduler"])
        if same_layout:
            random_state.restore(loaded["random"])


def _leave_out_extra_states_not_in(path: Path, state: dict[str, Any]) -> dict[str, list[str]]:
    """Requests only the extra states of modules that the checkpoint has.

    Transformer Engine's modules have them, and keep the scales of FP8 in them; megatron-core's own
    have none. A run may go on with the other kind of layers.

    Returns:
        What is left out, by model chunk: the modules take None for it.
    """
    stored = load_sharded_metadata(str(path))
    absent: dict[str, list[str]] = {}
    for chunk, content in state.items():
        if not chunk.startswith("model"):
            continue
        absent[chunk] = [
            name
            for name, value in content.items()
            if isinstance(value, ShardedObject)
            and "._extra_state" in name  # Grouped experts have numbered extra states.
            and value.unique_key not in stored
        ]
        for name in absent[chunk]:
            del content[name]
    return absent


def _live_storages(policy: Policy) -> frozenset[int]:
    """Storages of the tensors that training changes."""
    tensors = [t for module in policy.modules for t in (*module.parameters(), *module.buffers())]
    return frozenset(storage_of(tensor) for tensor in tensors + live_optimizer_tensors(policy))


def sharded_state(policy: Policy) -> dict[str, Any]:
    """megatron-core's sharded state dict of weights and optimizer, to save. Copies nothing."""
    state = _sharded_weights(policy)
    optimizer = OptimizerState(policy, state, _metadata(), is_loading=False)
    return state | {"optimizer": optimizer.sharded}


def _sharded_weights(policy: Policy) -> dict[str, Any]:
    return {
        name: module.sharded_state_dict(metadata=_metadata())
        for name, module in _named_chunks(policy)
    }


def _metadata() -> dict[str, Any]:
    """megatron-core's switches."""
    return {
        "dp_cp_group": _replicas(),
        "distrib_optim_sharding_type": "fully_reshardable",
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
    }


def _named_chunks(policy: Policy) -> list[tuple[str, Any]]:
    return [(f"model{number}", module) for number, module in enumerate(policy.modules)]


def _random_shard(state: dict[str, Any] | None) -> ShardedObject:
    """This rank's entry of the random states of all ranks."""
    return ShardedObject("random", state, (dist.get_world_size(),), (dist.get_rank(),))


def _replicas() -> dist.ProcessGroup:
    """Ranks that hold copies of the same weights and share the work of writing and reading."""
    return parallel_state.get_data_parallel_group(with_context_parallel=True)
