"""Seconds of a phase, from hand-made records."""

from __future__ import annotations

import pytest
from planned_models import phase_record

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.planning.gpus import GPUS
from megatron_resrl.planning.links import COLLECTIVE_S, Cluster
from megatron_resrl.planning.records import Traffic, Wait
from megatron_resrl.planning.seconds import (
    LAUNCH_S,
    WAIT_S,
    Pipeline,
    phase_seconds,
    slowest,
)

H100 = GPUS["h100"]
CLUSTER = Cluster(1, 8, H100)
PARALLEL = ParallelConfig()


def test_seconds_add_products_memory_and_wires() -> None:
    record = phase_record(
        flops={"bfloat16": 10**15, "float64": 10**12},
        touched=10**12,
        traffic=(Traffic("tensor", 8, "all_gather", 2, 10**9),),
    )
    found = phase_seconds(record, PARALLEL, CLUSTER, Pipeline())
    rate = 989e12 * 0.803 * 0.75
    assert found.matrix == pytest.approx(1e15 / rate + 1e12 / (67e12 * 0.8 * 0.75))
    assert found.memory == pytest.approx(1e12 / (3.35e12 * 0.77))
    assert found.wires["nvlink"] == pytest.approx(1e9 / 360e9 + 2 * COLLECTIVE_S)
    assert found.total == pytest.approx(found.matrix + found.memory + found.wires["nvlink"])


def test_seconds_are_the_launches_where_kernels_are_small() -> None:
    found = phase_seconds(phase_record(kernels=1000, touched=10), PARALLEL, CLUSTER, Pipeline())
    assert found.total == pytest.approx(1000 * LAUNCH_S)


def test_seconds_have_waits_and_copies_on_top() -> None:
    record = phase_record(waits=(Wait("a.py:1", 3), Wait("b.py:2", 1)), host_copies=55 * 10**9)
    found = phase_seconds(record, PARALLEL, CLUSTER, Pipeline())
    assert found.waits == pytest.approx(4 * WAIT_S)
    assert found.copies == pytest.approx(1.0)


def test_bubble_is_stages_over_micro_batches() -> None:
    record = phase_record(flops={"bfloat16": 10**15})
    alone = phase_seconds(record, PARALLEL, CLUSTER, Pipeline()).total
    piped = phase_seconds(record, PARALLEL, CLUSTER, Pipeline(4, 1, 12))
    assert piped.total == pytest.approx(alone * (1 + 3 / 12))
    virtual = phase_seconds(record, PARALLEL, CLUSTER, Pipeline(4, 5, 12))
    assert virtual.bubble == pytest.approx(piped.bubble / 5)
    other = phase_record("subspace", flops={"bfloat16": 10**15})
    assert phase_seconds(other, PARALLEL, CLUSTER, Pipeline(4, 1, 12)).bubble == 0


def test_overlap_hides_gradients_behind_computation() -> None:
    traffic = (
        Traffic("data", 64, "reduce_scatter", 0, 10**11),
        Traffic("data", 64, "all_gather", 0, 10**11),
    )
    cluster = Cluster(8, 8, H100)
    record = phase_record(flops={"bfloat16": 10**15}, traffic=traffic)
    plain = phase_seconds(record, PARALLEL, cluster, Pipeline())
    overlapped = ParallelConfig(ddp={"overlap_grad_reduce": True})
    hidden = phase_seconds(record, overlapped, cluster, Pipeline())
    assert hidden.wires["network"] == pytest.approx(plain.wires["network"] / 2)
    # What takes longer than the computation cannot hide.
    idle = phase_record(traffic=traffic)
    assert phase_seconds(idle, overlapped, cluster, Pipeline()).total == pytest.approx(
        phase_seconds(idle, PARALLEL, cluster, Pipeline()).total
    )


def test_slowest_rank_ends_each_phase() -> None:
    quick, slow = (
        [
            phase_seconds(phase_record(name, touched=size), PARALLEL, CLUSTER, Pipeline())
            for name, size in (("scoring", one), ("update", other))
        ]
        for one, other in ((10, 30), (20, 5))
    )
    found = slowest({"first stage": quick, "last stage": slow})
    assert {name: role for name, (role, _) in found.items()} == {
        "scoring": "last stage",
        "update": "first stage",
    }
