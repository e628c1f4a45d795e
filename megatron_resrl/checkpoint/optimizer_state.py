"""An optimizer's and its schedule's state as sharded tensors in the shape of the weights."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_resrl.policy.policy import Policy

logger = logging.getLogger(__name__)

_TORCH_ADAM = (torch.optim.Adam, torch.optim.AdamW)
_FETCHED_BYTES = 2**28
"""Of pinned host memory that a save takes for the optimizer's state at a time."""


def sharded_optimizer_state(
    policy: Policy, model_state: dict[str, Any], metadata: dict[str, Any], *, is_loading: bool
) -> dict[str, Any]:
    """megatron-core's sharded state dict of the policy's optimizer. Collective.

    Args:
        policy: With an optimizer.
        model_state: The sharded state dicts of its model chunks.
        metadata: megatron-core's switches, see `policy_state`.
        is_loading: Whether a checkpoint will be read into the tensors.
    """
    _complete_adam_state(policy)
    with _offsets_without_bucket_padding(policy), _states_fetched_together(policy):
        return policy.optimizer.sharded_state_dict(
            model_state, is_loading=is_loading, metadata=metadata
        )


def load_optimizer(policy: Policy, state: dict[str | int, Any], schedule: dict[str, Any]) -> None:
    """Takes moments and step counts from a checkpoint, settings from the recipe.

    Args:
        policy: With an optimizer.
        state: What megatron-core loaded into `sharded_optimizer_state`.
        schedule: `OptimizerParamScheduler.state_dict()` at the time of saving.
    """
    policy.optimizer.load_state_dict(_for_own_parts(policy, state))
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
            fitted["param_state_sharding_type"] = saved["param_state_sharding_type"]
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


@contextlib.contextmanager
def _offsets_without_bucket_padding(policy: Policy) -> Iterator[None]:
    """Makes the distributed optimizer find each parameter in the gathered state.

    megatron-core gathers a buffer's state without the padding between its buckets, then cuts
    parameters out at offsets that include it: with several buckets it silently saves the wrong
    moments (https://github.com/NVIDIA/Megatron-LM/pull/5077).
    """
    distributed = [part for part in _parts(policy) if isinstance(part, DistributedOptimizer)]
    buffers = [buffer for part in distributed for buffer in part.buffers]
    padded = [buffer.param_index_map for buffer in buffers]
    for buffer in buffers:
        shifts, gathered = [], 0
        for bucket, (start, _) in zip(buffer.buckets, buffer.bucket_indices, strict=True):
            shifts.append(start - gathered)
            gathered += bucket.numel_unpadded
        buffer.param_index_map = {
            parameter: (start - shifts[bucket], end - shifts[bucket], bucket)
            for parameter, (start, end, bucket) in buffer.param_index_map.items()
        }
    try:
        yield
    finally:
        for buffer, index_map in zip(buffers, padded, strict=True):
            buffer.param_index_map = index_map


@contextlib.contextmanager
def _states_fetched_together(policy: Policy) -> Iterator[None]:
    """Makes the distributed optimizer wait for the device once per `_FETCHED_BYTES` of its state.

    megatron-core copies one tensor of one parameter at a time, and waits for each.
    """
    parts = [part for part in _parts(policy) if isinstance(part, DistributedOptimizer)]
    for part in parts:
        part._get_main_param_and_optimizer_states = _FetchedStates(part)
    try:
        yield
    finally:
        for part in parts:
            del part._get_main_param_and_optimizer_states


class _FetchedStates:
    """Host copies of the masters and moments of one parameter after another.

    Attributes:
        fetched: Parameter -> its tensors by name, of those fetched and not yet asked for.
    """

    def __init__(self, part: DistributedOptimizer) -> None:
        self._on_device = part._get_main_param_and_optimizer_states
        # In the order in which megatron-core asks for them.
        self._order = [
            parameter
            for buckets_by_type in part.gbuf_ranges
            for buckets in buckets_by_type.values()
            for bucket in buckets
            for parameter in bucket["param_map"]
        ]
        self._place = {parameter: number for number, parameter in enumerate(self._order)}
        self.fetched: dict[torch.nn.Parameter, dict[str, torch.Tensor]] = {}

    def __call__(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        if parameter not in self.fetched:
            self._fetch(self._place[parameter])
        return self.fetched.pop(parameter)

    def _fetch(self, first: int) -> None:
        """Copies the state of parameters from `first` on to pinned memory, and waits once."""
        self.fetched, size = {}, 0
        for parameter in self._order[first:]:
            if size >= _FETCHED_BYTES:
                break
            tensors = self._on_device(parameter)
            self.fetched[parameter] = copies = {
                name: tensor.detach().to("cpu", non_blocking=True)
                for name, tensor in tensors.items()
                if torch.is_tensor(tensor)
            }
            size += sum(copy.nbytes for copy in copies.values())
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
