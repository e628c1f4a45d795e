"""Where a group's ranks are, and how long its traffic takes."""

from __future__ import annotations

import pytest

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.planning.gpus import GPUS
from megatron_resrl.planning.links import (
    COLLECTIVE_S,
    NETWORK_COLLECTIVE_S,
    Cluster,
    Span,
    span_of,
    stride_of,
    traffic_seconds,
)
from megatron_resrl.planning.records import Traffic

H100 = GPUS["h100"]
CLUSTER = Cluster(nodes=8, gpus_per_node=8, gpu=H100)
TP4_PP4 = ParallelConfig(tensor_model_parallel_size=4, pipeline_model_parallel_size=4)


@pytest.mark.parametrize(
    ("group", "size", "stride"),
    [("tensor", 4, 1), ("context", 2, 4), ("data", 2, 8), ("data", 4, 4), ("pipeline", 4, 16)],
)
def test_stride_follows_megatron_order(group: str, size: int, stride: int) -> None:
    parallel = ParallelConfig(
        tensor_model_parallel_size=4, context_parallel_size=2, pipeline_model_parallel_size=4
    )
    assert stride_of(group, size, parallel, 64) == stride


def test_stride_of_experts_is_over_their_own_ranks() -> None:
    parallel = ParallelConfig(
        tensor_model_parallel_size=4, expert_model_parallel_size=8, expert_tensor_parallel_size=1
    )
    assert stride_of("expert", 8, parallel, 64) == 1
    assert stride_of("expert_data", 8, parallel, 64) == 8


@pytest.mark.parametrize(
    ("stride", "size", "span"),
    [(1, 8, Span(8, 1)), (4, 4, Span(2, 2)), (16, 4, Span(1, 4)), (1, 16, Span(8, 2))],
)
def test_span_fills_nodes_in_order(stride: int, size: int, span: Span) -> None:
    assert span_of(stride, size, gpus_per_node=8) == span


def test_traffic_inside_of_a_node_takes_nvlink() -> None:
    wire, seconds = traffic_seconds(
        Traffic("tensor", 4, "all_gather", 10, 36 * 10**9), TP4_PP4, CLUSTER
    )
    assert wire == "nvlink"
    assert seconds == pytest.approx(36e9 / (450e9 * 0.8) + 10 * COLLECTIVE_S)


def test_traffic_between_nodes_uses_every_network_card() -> None:
    # Two of the four data-parallel ranks are on each node: each card carries half.
    wire, seconds = traffic_seconds(
        Traffic("data", 4, "reduce_scatter", 1, 74 * 10**9), TP4_PP4, CLUSTER
    )
    assert wire == "network"
    assert seconds == pytest.approx(74e9 / 2 / (50e9 * 0.74) + NETWORK_COLLECTIVE_S)


def test_traffic_between_stages_crosses_one_card() -> None:
    wire, seconds = traffic_seconds(Traffic("pipeline", 4, "send", 3, 37 * 10**8), TP4_PP4, CLUSTER)
    assert wire == "network"
    assert seconds == pytest.approx(37e8 / (50e9 * 0.74) + 3 * COLLECTIVE_S)


def test_traffic_to_all_leaves_the_node_for_the_others() -> None:
    # 16 ranks on two nodes: of 15 messages, 8 go to the other node.
    parallel = ParallelConfig(expert_model_parallel_size=16)
    _, seconds = traffic_seconds(
        Traffic("expert", 16, "all_to_all", 0, 15 * 10**9), parallel, CLUSTER
    )
    assert seconds == pytest.approx(8e9 / (50e9 * 0.74))


def test_traffic_of_the_host_is_on_ethernet() -> None:
    wire, seconds = traffic_seconds(Traffic("host", 64, "gather", 0, 125 * 10**7), TP4_PP4, CLUSTER)
    assert (wire, seconds) == ("host", pytest.approx(1.0))
