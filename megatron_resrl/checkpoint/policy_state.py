"""A policy's state as megatron-core's sharded state dict, and back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy

from megatron_resrl.checkpoint import random_state
from megatron_resrl.checkpoint.folders import CheckpointError
from megatron_resrl.checkpoint.writer import InProcessSaveStrategy
from megatron_resrl.policy.policy import Policy

logger = logging.getLogger(__name__)

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
)
_LAYOUT_FIELDS = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
)


def model_identity(policy: Policy) -> dict[str, Any]:
    """What must be equal for a checkpoint to fit."""
    return {name: getattr(policy.hf_config, name, None) for name in _MODEL_FIELDS}


def optimizer_identity(policy: Policy) -> dict[str, Any]:
    """What must be equal for the optimizer's state to fit; settings by their recipe names."""
    return {
        "precision.params_dtype": str(policy.config.params_dtype).removeprefix("torch."),
        "parallel.use_distributed_optimizer": (
            policy.chunks[0].ddp_config.use_distributed_optimizer
        ),
    }


def layout(policy: Policy) -> dict[str, Any]:
    """How the ranks share the model; random states belong to it."""
    sizes = {name: getattr(policy.config, name) for name in _LAYOUT_FIELDS}
    return sizes | {"world_size": dist.get_world_size()}


def save(policy: Policy, folder: Path) -> None:
    """Writes weights, optimizer, schedule and random states of all ranks. Collective.

    The optimizer's moments are stored in the shape of the weights they belong to, whatever the
    layout. That takes 12 bytes of host memory per parameter of this rank's share of the model
    while saving: the price of loading them under another layout.

    Args:
        policy: With an optimizer.
        folder: Exists on all hosts.
    """
    state = _sharded_state(policy, is_loading=False, with_optimizer=True)
    state["scheduler"] = policy.scheduler.state_dict()
    state["random"] = _random_shard(random_state.capture())
    strategy = FullyParallelSaveStrategyWrapper(InProcessSaveStrategy(), _replicas())
    dist_checkpointing.save(state, str(folder), sharded_strategy=strategy)


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
    trainable = policy.optimizer is not None
    state = _sharded_state(policy, is_loading=True, with_optimizer=trainable)
    if trainable and same_layout:
        state["random"] = _random_shard(None)
    strategy = FullyParallelLoadStrategyWrapper(TorchDistLoadShardedStrategy(), _replicas())
    try:
        loaded = dist_checkpointing.load(state, str(path), sharded_strategy=strategy)
    except (CheckpointingException, KeyError) as error:
        raise CheckpointError(f"checkpoint {path} does not fit the policy: {error}") from error
    for name, module in _named_chunks(policy):
        module.load_state_dict(loaded[name])
    if trainable:
        _load_optimizer(policy, loaded["optimizer"], loaded["scheduler"])
        if same_layout:
            random_state.restore(loaded["random"])


def _sharded_state(policy: Policy, *, is_loading: bool, with_optimizer: bool) -> dict[str, Any]:
    metadata = {
        "dp_cp_group": _replicas(),
        "distrib_optim_sharding_type": "fully_reshardable",
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
    }
    state = {
        name: module.sharded_state_dict(metadata=metadata) for name, module in _named_chunks(policy)
    }
    if with_optimizer:
        state["optimizer"] = policy.optimizer.sharded_state_dict(
            state, is_loading=is_loading, metadata=metadata
        )
    return state


def _load_optimizer(policy: Policy, state: dict[str, Any], schedule: dict[str, Any]) -> None:
    """Moments and step counts come from the checkpoint, settings from the recipe."""
    settings = [
        {name: value for name, value in group.items() if name not in ("params", "step")}
        for group in policy.optimizer.param_groups
    ]
    policy.optimizer.load_state_dict(state)
    for group, own in zip(policy.optimizer.param_groups, settings, strict=True):
        group.update(own)
    own = policy.scheduler.state_dict()
    changed = [name for name in own if name != "num_steps" and own[name] != schedule[name]]
    for name in changed:
        logger.warning(
            "the optimizer schedule's %s is %s in the checkpoint and %s in the recipe, which counts",
            name,
            schedule[name],
            own[name],
        )
    policy.scheduler.num_steps = schedule["num_steps"]
    policy.scheduler.step(increment=0)


def _named_chunks(policy: Policy) -> list[tuple[str, Any]]:
    return [(f"model{number}", module) for number, module in enumerate(policy.modules)]


def _random_shard(state: dict[str, Any] | None) -> ShardedObject:
    """This rank's entry of the random states of all ranks."""
    return ShardedObject("random", state, (dist.get_world_size(),), (dist.get_rank(),))


def _replicas() -> dist.ProcessGroup:
    """Ranks that hold copies of the same weights and share the work of writing and reading."""
    return parallel_state.get_data_parallel_group(with_context_parallel=True)
