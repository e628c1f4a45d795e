"""Which wires a process group's traffic takes: NVLink inside of a node, the network between nodes.

Ranks are laid out as megatron-core does: tensor fastest, then context, data and pipeline; experts
are laid out over the same ranks as expert tensor, expert, expert data and pipeline. Nodes are
filled in order of ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.planning.gpus import Gpu
from megatron_resrl.planning.records import Traffic

COLLECTIVE_S = 48e-6
"""Seconds of a collective of few bytes inside of a node (stas00/ml-engineering, network: all-reduce
of 32 KiB over 8 B200)."""

NETWORK_COLLECTIVE_S = 350e-6
"""Seconds of a collective of few bytes between nodes (ibid.: 512 KiB and 1 MiB over 4 nodes)."""

_HOST_NETWORK = 1.25e9
"""Bytes/s of gloo: 10 Gbit/s Ethernet."""


@dataclass(frozen=True)
class Cluster:
    """The machines of a job."""

    nodes: int
    gpus_per_node: int
    gpu: Gpu

    @property
    def world_size(self) -> int:
        """Ranks: one for each GPU."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Span:
    """Where the ranks of a group are."""

    members: int
    """Ranks of the group on one node."""
    nodes: int
    """Nodes that the group touches."""


def stride_of(group: str, size: int, parallel: ParallelConfig, world_size: int) -> int:
    """Distance between neighbouring ranks of a group.

    Args:
        group: One of `records.GROUPS`.
        size: Its ranks.
        parallel: Layout.
        world_size: Ranks of the job.
    """
    tensor, context = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    stages = parallel.pipeline_model_parallel_size
    expert_tensor = parallel.expert_tensor_parallel_size or tensor
    # The group that shards the optimizer has the ranks of context parallelism, too.
    with_context = context > 1 and size == world_size // (tensor * stages)
    return {
        "context": tensor,
        "data": tensor if with_context else tensor * context,
        "pipeline": world_size // stages,
        "expert": expert_tensor,
        "expert_data": expert_tensor * parallel.expert_model_parallel_size,
    }.get(group, 1)


def span_of(stride: int, size: int, gpus_per_node: int) -> Span:
    """Where `size` ranks are whose neighbours are `stride` apart."""
    members = min(size, max(1, gpus_per_node // stride))
    return Span(members, math.ceil(size / members))


def traffic_seconds(
    traffic: Traffic, parallel: ParallelConfig, cluster: Cluster
) -> tuple[str, float]:
    """The wire that a group's traffic takes, and for how long.

    A ring through all ranks leaves a node once for all of its members, and NCCL opens as many rings
    as there are members, so that each network card carries its share.

    Returns:
        `nvlink`, `network` or `host`, and seconds: the slower of the wires that the bytes cross,
        and a fixed time for each call.
    """
    if traffic.group == "host":
        return "host", traffic.bytes / _HOST_NETWORK + traffic.calls * NETWORK_COLLECTIVE_S
    stride = stride_of(traffic.group, traffic.size, parallel, cluster.world_size)
    span = span_of(stride, traffic.size, cluster.gpus_per_node)
    gpu = cluster.gpu
    inside = traffic.bytes / gpu.nvlink_rate
    if span.nodes == 1:
        return "nvlink", inside + traffic.calls * COLLECTIVE_S
    share = _share_between_nodes(traffic.collective, span)
    outside = traffic.bytes * share / gpu.network_rate
    # A message to one other rank has no ring to set up.
    fixed = COLLECTIVE_S if traffic.collective in _POINT_TO_POINT else NETWORK_COLLECTIVE_S
    return "network", max(inside * (span.members > 1), outside) + traffic.calls * fixed


_POINT_TO_POINT = ("send", "recv", "isend", "irecv", "batch_isend_irecv")


def _share_between_nodes(collective: str, span: Span) -> float:
    """Of the bytes that a rank sends, those that leave its node."""
    if collective in _POINT_TO_POINT:
        return 1.0
    if "all_to_all" in collective:  # Each rank sends the same to every other.
        size = span.members * span.nodes
        return (size - span.members) / max(1, size - 1)
    return 1 / span.members
