"""What a dry run answers in the place of numbers and ranks that do not exist."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_resrl.algorithms.correction import WeightSums
from megatron_resrl.diagnostics.mismatch import Mismatch
from megatron_resrl.diagnostics.step_metrics import ReplicaReport
from megatron_resrl.planning.layout import layers_of_stages
from megatron_resrl.platform.fake_device.device import Answer
from megatron_resrl.platform.fake_device.lines import KindRule
from megatron_resrl.platform.fake_device.process_groups import Objects
from megatron_resrl.token_weighting.protocol import TokenWeights

KINDS = (
    KindRule("policy/log_probs.py", None, "logits"),
    KindRule("engines/cached_decoder.py", "select", "KV cache"),
    KindRule("core/transformer/attention.py", "_allocate_memory", "KV cache"),
    KindRule("megatron_resrl/rollout/sampling.py", None, "logits"),
    KindRule("megatron_resrl/subspace/", None, "subspace"),
    KindRule("pytorch/module/base.py", "get_weight_workspace", "FP8 weights"),
    KindRule("cpp_extensions/gemm.py", "get_cublas_workspace", "workspaces"),
    KindRule("core/distributed/param_and_grad_buffer.py", None, "gradients"),
    KindRule("optimizers/fused_adam.py", None, "optimizer"),
    KindRule("core/optimizer/", None, "optimizer"),
)
"""What the memory is that a piece of code takes; parameters are named when they are built."""


def _no(local: Mapping[str, Any], tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _all_tokens(local: Mapping[str, Any], tensor: torch.Tensor) -> torch.Tensor:
    """[3, ranks]: no bad state, no first one, and on the first rank as many tokens as planned."""
    numbers = torch.zeros(tensor.shape, dtype=tensor.dtype)
    numbers[2, 0] = local["planned"]
    return numbers


ANSWERS: dict[tuple[str, str], Answer] = {
    ("policy/finite.py", "require_finite"): _no,
    ("subspace/basis.py", "_too_steep"): _no,
    ("subspace/stream.py", "_check"): _all_tokens,
}
"""(file, function) -> what it reads of the device."""


def _layers(local: Mapping[str, Any]) -> list[list[int]]:
    return layers_of_stages(local["modules"][0].config)


def _mismatch(local: Mapping[str, Any]) -> list[list[Mismatch]]:
    none = WeightSums(1, 0.0, 0.0)
    return [[Mismatch(1, 0.0, 0.0, 0.0, 0.0, 0.0, none, none)]]


def _report(local: Mapping[str, Any]) -> list[ReplicaReport]:
    return [ReplicaReport(sums=[], tokens=1, entropy=0.0, groups=[], weighting={})]


def _same_responses(local: Mapping[str, Any]) -> list[dict[int, Any]]:
    return [dict.fromkeys(range(local["count"]), next(iter(local["done"].values())))]


def _own_stage_alone(name: str, absent: Any) -> Callable[[Mapping[str, Any]], list[Any]]:
    """The local variable `name` at this rank's pipeline stage, and `absent` at the others."""

    def objects(local: Mapping[str, Any]) -> list[Any]:
        found = [absent] * parallel_state.get_pipeline_model_parallel_world_size()
        found[parallel_state.get_pipeline_model_parallel_rank()] = local[name]
        return found

    return objects


GATHERED: Objects = {
    ("policy/hidden_states.py", "__init__"): _layers,
    ("diagnostics/mismatch.py", "gather_mismatch"): _mismatch,
    ("diagnostics/step_metrics.py", "gather_reports"): _report,
    ("rollout/engines/megatron.py", "_generate"): _same_responses,
    # An export goes through the weights of this rank's stage alone.
    ("weights/export.py", "_of_all_stages"): _own_stage_alone("own", []),
}
"""(file, function) -> the objects that it gathers from all ranks of a group."""

BROADCAST: Objects = {
    ("token_weighting/stages.py", "from_tap_stage"): lambda _: TokenWeights(torch.empty(0)),
}
"""(file, function) -> the object that another rank broadcasts to it."""
