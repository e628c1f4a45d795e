"""An optimizer's and its schedule's state as sharded tensors in the shape of the weights."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_resrl.checkpoint.blocks import Block, blocks_in_range
from megatron_resrl.policy.policy import Policy

logger = logging.getLogger(__name__)

_TORCH_ADAM = (torch.optim.Adam, torch.optim.AdamW)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A rank's part of the state of one parameter: positions `start` to `stop` of it, flattened."""

    parameter: torch.nn.Parameter
    start: int
    stop: int
    tensors: dict[str, torch.Tensor]
    """fp32 [stop - start] by name: `param` the master, `exp_avg`, `exp_avg_sq`. The optimizer's
    own tensors if they are fp32."""


class OptimizerState:
    """Masters, moments, step counts and settings of an optimizer, for one save or load.

    The distributed optimizer gives each rank a range of every buffer of parameters. Its masters
    and moments are stored from where they are, cut into blocks of tensors in the shape of the
    weights, so that any layout reads what any other has written: no rank gathers or copies them.
    megatron-core's `fully_reshardable` state has the same tensors, gathered and uncut.

    Attributes:
        sharded: megatron-core's sharded state dict.
    """

    sharded: dict[Any, Any]

    def __init__(
        self,
        policy: Policy,
        weights: dict[str, Any],
        metadata: dict[str, Any],
        *,
        is_loading: bool,
    ) -> None:
        """
        Args:
            policy: With an optimizer.
            weights: The sharded state dicts of its model chunks.
            metadata: megatron-core's switches, see `policy_state`.
            is_loading: Whether a checkpoint will be read into the tensors.
        """
        self._policy = policy
        self._blocks: dict[int, dict[int, dict[str, dict[int, torch.Tensor]]]] = {}
        self._shards: dict[int, list[_Shard]] = {}
        _complete_adam_state(policy)
        parts = _parts(policy)
        if len(parts) > 1:
            policy.optimizer._synchronize_steps()
        places = _places_of_parameters(weights)
        states = {}
        for number, part in enumerate(parts):
            if isinstance(part, DistributedOptimizer):
                states[number] = self._distributed(number, part, places, is_loading=is_loading)
            else:
                states[number] = part.sharded_state_dict(weights, is_loading, metadata=metadata)
        self.sharded = states[0] if len(parts) == 1 else states

    def _distributed(
        self,
        number: int,
        part: DistributedOptimizer,
        places: Mapping[torch.Tensor, Sequence[ShardedTensor]],
        *,
        is_loading: bool,
    ) -> dict[str, Any]:
        if is_loading:
            part.load_state_dict(part.state_dict())  # Makes what an optimizer still lacks.
        shards = self._shards[number] = list(_shards(part))
        instance = part.distributed_optimizer_instance_id
        blocks = {
            index: {
                name: dict(enumerate(_blocks(shard, name, places[shard.parameter], instance)))
                for name in shard.tensors
            }
            for index, shard in enumerate(shards)
        }
        # megatron-core may give a block other memory while it reads.
        self._blocks[number] = {
            index: {
                name: {place: block.data for place, block in several.items()}
                for name, several in by_name.items()
            }
            for index, by_name in blocks.items()
        }
        kind = {"param_state_sharding_type": "fully_reshardable"}
        return part.state_dict() | {"param_state": blocks} | kind

    def load(self, loaded: dict[Any, Any], schedule: dict[str, Any]) -> None:
        """Takes masters, moments and step counts from a checkpoint, settings from the recipe.

        Args:
            loaded: What megatron-core loaded into `sharded`.
            schedule: `OptimizerParamScheduler.state_dict()` at the time of saving.
        """
        policy, parts = self._policy, _parts(self._policy)
        of_parts = [loaded] if len(parts) == 1 else [loaded[number] for number in range(len(parts))]
        for number, views in self._blocks.items():
            _read_into(views, of_parts[number].pop("param_state"))
        policy.optimizer.load_state_dict(_for_own_parts(policy, loaded))
        for number, shards in self._shards.items():
            parts[number].load_parameter_state_from_fs_model_space(
                {index: shard.tensors for index, shard in enumerate(shards)}
            )
        for name, own in policy.scheduler.state_dict().items():
            if name != "num_steps" and own != schedule[name] and dist.get_rank() == 0:
                logger.warning(
                    "the optimizer's %s was %s in the checkpoint; the recipe's %s is used",
                    name,
                    schedule[name],
                    own,
                )
        policy.scheduler.num_steps = schedule["num_steps"]


def live_optimizer_tensors(policy: Policy) -> list[torch.Tensor]:
    """Masters and moments of this rank."""
    tensors = []
    for inner in (part.optimizer for part in _parts(policy)):
        tensors += [parameter for group in inner.param_groups for parameter in group["params"]]
        for state in inner.state.values():
            tensors += [value for value in state.values() if torch.is_tensor(value)]
    return tensors


def _parts(policy: Policy) -> list[MegatronOptimizer]:
    return getattr(policy.optimizer, "chained_optimizers", [policy.optimizer])


def _shards(part: DistributedOptimizer) -> Iterator[_Shard]:
    """This rank's shards, in megatron-core's order."""
    for buckets_by_type in part.gbuf_ranges:
        for buckets in buckets_by_type.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    own = ranges["param"]
                    tensors = part._get_main_param_and_optimizer_states(parameter)
                    yield _Shard(
                        parameter,
                        own.start,
                        own.end,
                        {
                            # A precision-aware optimizer's are stored as others read them.
                            name: tensor.float()
                            for name, tensor in tensors.items()
                            if torch.is_tensor(tensor) and name != "step"
                        },
                    )


def _places_of_parameters(weights: dict[str, Any]) -> dict[torch.Tensor, list[ShardedTensor]]:
    """Parameter -> where it, or each piece that is stored apart, belongs in the stored tensors.

    The weights of a gated MLP are two pieces: those of the gates, and of what they let through.
    """
    places = {}
    for each in nested_values(weights):
        if isinstance(each, ShardedTensorFactory):
            places[each.data] = list(nested_values(each.build()))
        elif isinstance(each, ShardedTensor):
            places[each.data] = [each]
    return places


def _blocks(
    shard: _Shard, name: str, places: Sequence[ShardedTensor], instance: int
) -> Iterator[ShardedTensor]:
    """The blocks of one tensor of a shard, which are views of it.

    Args:
        shard: Of a parameter.
        name: Of the tensor.
        places: Of the parameter.
        instance: Number of the copy of the optimizer, where there are several.
    """
    tensor, parameter = shard.tensors[name].detach(), shard.parameter
    for piece in places:
        if piece.data.untyped_storage()._cdata != parameter.untyped_storage()._cdata:
            raise NotImplementedError(f"{piece.key} is stored as a copy of its parameter")
        begin = piece.data.storage_offset() - parameter.storage_offset()
        strides = piece.data.stride()
        for block in blocks_in_range(
            piece.data.shape, strides, shard.start - begin, shard.stop - begin
        ):
            first = begin - shard.start
            first += sum(i * s for i, s in zip(block.offset, strides, strict=True))
            lead = (1,) * piece.prepend_axis_num  # Layers or experts of a stack.
            view = tensor.as_strided(
                lead + block.shape, lead + strides, tensor.storage_offset() + first
            )
            yield _stored(piece, name, block, view, (*piece.replica_id[:2], instance))


def _stored(
    piece: ShardedTensor, name: str, block: Block, view: torch.Tensor, replica: tuple[int, ...]
) -> ShardedTensor:
    """A block of a piece of a parameter as a block of the stored tensor."""
    lead = piece.prepend_axis_num
    inner = map(sum, zip(piece.global_offset[lead:], block.offset, strict=True))
    return dataclasses.replace(
        piece,
        key=f"optimizer.state.{name}.{piece.key}",
        data=view,
        dtype=view.dtype,
        local_shape=tuple(view.shape),
        global_offset=(*piece.global_offset[:lead], *inner),
        axis_fragmentations=None,
        replica_id=replica,
        prepend_axis_num=0,
    )


def _read_into(views: Mapping[Any, Any] | torch.Tensor, loaded: Any) -> None:
    """Copies what was not read into place already."""
    if isinstance(views, Mapping):
        for name, inner in views.items():
            _read_into(inner, loaded[name])
    elif views.data_ptr() != loaded.data_ptr():
        views.copy_(loaded)


def _for_own_parts(
    policy: Policy, state: Mapping[str | int, Any]
) -> dict[str, Any] | dict[int, Any]:
    """Gives each part of the policy's optimizer its own settings and the step count that was saved.

    Where experts are split over ranks, megatron-core has a second optimizer for them. It stores
    moments under the names of weights, but counts and settings under the number of the optimizer,
    or without one if there is one only; so they are not found under the other kind of layout.
    """
    parts = _parts(policy)
    plain = {name: value for name, value in state.items() if not isinstance(name, int)}
    if len(parts) == 1:
        own, other = [plain], state.get(0)
    else:
        own, other = [state[number] for number in range(len(parts))], plain
    for part, fitted in zip(parts, own, strict=True):
        saved = other or fitted
        steps = _steps_taken(_inner(saved))
        groups = _inner(part.state_dict())["param_groups"]
        for group in groups:
            group["step"] = steps
        if isinstance(part, DistributedOptimizer):
            fitted["optimizer"] = {"param_groups": groups}
        else:
            inner = _inner(fitted)
            inner["param_groups"] = groups
            states = inner.setdefault("state", {})
            states.pop("common_step", None)
            if isinstance(part.optimizer, _TORCH_ADAM):
                states["common_step"] = torch.tensor(float(steps))
    return own[0] if len(parts) == 1 else dict(enumerate(own))


def _inner(state: dict[str, Any]) -> dict[str, Any]:
    """The part of the state of one of megatron-core's optimizers that is torch's."""
    return state.get("optimizer", state)


def _steps_taken(saved: dict[str, Any]) -> int:
    """Step count of any Adam: torch's has it in the states of parameters, fused ones in groups.

    Neither says so before the first step.
    """
    in_groups = (group["step"] for group in saved["param_groups"] if group.get("step") is not None)
    return int(saved.get("state", {}).get("common_step", next(in_groups, 0)))


def _complete_adam_state(policy: Policy) -> None:
    """Initialises the state that Adam otherwise makes in its first step.

    A run whose gradients were never finite, or that is stopped before its first step, saves it too.
    """
    for part in _parts(policy):
        inner = part.optimizer
        for parameter in (p for group in inner.param_groups for p in group["params"]):
            if inner.state.get(parameter):
                continue
            if isinstance(inner, _TORCH_ADAM):
                inner.state[parameter] = _moments(parameter) | {"step": torch.tensor(0.0)}
            elif hasattr(inner, "initialize_state"):  # Transformer Engine's FusedAdam.
                remainders = inner.store_param_remainders and parameter.dtype is torch.bfloat16
                inner.initialize_state(parameter, remainders)
            elif type(inner).__name__ == "FusedAdam":  # Apex's.
                inner.state[parameter] = _moments(parameter)


def _moments(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
