"""The forecast of a job, from hand-made records."""

from __future__ import annotations

import dataclasses
import json

import pytest
from planned_models import LLAMA_8B, phase_record, shape_of

from megatron_resrl.config.schema import (
    AlgorithmConfig,
    ParallelConfig,
    Recipe,
    RolloutConfig,
    VllmConfig,
)
from megatron_resrl.planning.forecast import forecast
from megatron_resrl.planning.gpus import GPUS
from megatron_resrl.planning.links import Cluster
from megatron_resrl.planning.options import PlanOptions
from megatron_resrl.planning.records import Holder, RankRecord, Traffic, Wait
from megatron_resrl.planning.report import report
from megatron_resrl.planning.rl_job import RlJob

GIB = 2**30
EMBEDDED = Recipe(
    parallel=ParallelConfig(pipeline_model_parallel_size=2),
    rollout=RolloutConfig(prompts_per_step=16, group_size=4, max_response_length=1024),
    algorithm=AlgorithmConfig(micro_batch_size=2, updates_per_step=2),
)
VLLM = dataclasses.replace(
    EMBEDDED,
    rollout=dataclasses.replace(EMBEDDED.rollout, engine="vllm"),
    vllm=VllmConfig(servers=8, arguments={"gpu-memory-utilization": 0.5}),
)


def job(recipe: Recipe) -> RlJob:
    return RlJob.of(recipe, shape_of(LLAMA_8B), Cluster(1, 8, GPUS["h100"]), PlanOptions())


def ranks(peak: int = 20 * GIB) -> list[RankRecord]:
    """Two stages; the last one works longer, the first one holds more."""
    first = (
        phase_record("build", peak=10 * GIB),
        phase_record("scoring", start=10 * GIB, peak=12 * GIB, flops={"bfloat16": 10**14}),
        dataclasses.replace(
            phase_record("update", peak=peak, flops={"bfloat16": 3 * 10**14}),
            peak_by_kind={"activations": peak - GIB, "weights": GIB},
            holders=(Holder("policy/log_probs.py:70", "activations", GIB),),
        ),
    )
    wires = (
        Traffic("data", 4, "all_gather", 2, 10**9),
        Traffic("world", 8, "all_reduce", 1, 8),
    )
    last = (
        phase_record("build", peak=9 * GIB),
        phase_record("scoring", peak=11 * GIB, flops={"bfloat16": 2 * 10**14}),
        dataclasses.replace(
            phase_record("update", peak=GIB, flops={"bfloat16": 6 * 10**14}, traffic=wires),
            waits=(Wait("training/updating.py:100", 40),),
        ),
    )
    return [RankRecord(0, "first stage", first), RankRecord(4, "last stage", last)]


def test_job_counts_micro_batches_of_a_replica() -> None:
    found = job(EMBEDDED)
    # 16 prompts on 4 replicas, 4 responses each: 8 micro-batches of 2, in two updates.
    assert (found.step.replicas, found.step.micro_batches) == (4, 8)
    assert found.pipeline("scoring").micro_batches == 8
    assert found.pipeline("update").micro_batches == 4


def test_forecast_takes_the_slowest_rank_of_each_phase() -> None:
    found = forecast(job(EMBEDDED), ranks())
    rate = GPUS["h100"].matrix_rate("bfloat16")
    role, scoring = found.phases["scoring"]
    assert role == "last stage"
    assert scoring.total == pytest.approx(2e14 / rate * (1 + 1 / 8))
    assert list(found.parts) == ["generation", "scoring", "update"]
    assert found.step_seconds == pytest.approx(sum(found.parts.values()))


def test_forecast_names_the_rank_that_holds_most() -> None:
    found = forecast(job(EMBEDDED), ranks())
    assert {name: role for name, (role, _) in found.most_demanding().items()} == {
        "build": "first stage",
        "scoring": "first stage",
        "update": "first stage",
    }
    assert found.fits
    assert found.changes == ()


def test_forecast_says_what_helps_where_it_does_not_fit() -> None:
    found = forecast(job(EMBEDDED), ranks(peak=90 * GIB))
    assert not found.fits
    assert found.changes[0].startswith("algorithm.micro_batch_size: 1")


def test_forecast_of_vllm_has_its_share_and_transfer() -> None:
    found = forecast(job(VLLM), ranks())
    assert found.generation is not None
    assert list(found.parts) == ["generation", "scoring", "update", "weight_transfer"]
    assert [each.what for each in found.verdicts][-2:] == [
        "vLLM: weights, largest pass and one response",
        "vLLM awake beside the trainer",
    ]


def test_forecast_counts_the_servers_of_all_nodes() -> None:
    recipe = dataclasses.replace(VLLM, parallel=ParallelConfig())
    found = [
        RlJob.of(
            dataclasses.replace(recipe, vllm=dataclasses.replace(recipe.vllm, **own)),
            *(shape_of(LLAMA_8B), Cluster(2, 8, GPUS["h100"]), PlanOptions()),
        ).servers
        for own in ({}, {"nodes": 3}, {"urls": ("http://a:1",)})
    ]
    assert found == [16, 24, 1]


def test_forecast_that_runs_ahead_takes_the_longer_half() -> None:
    ahead = dataclasses.replace(
        VLLM,
        rollout=dataclasses.replace(VLLM.rollout, placement="disaggregated", max_staleness=1),
    )
    found = forecast(job(ahead), ranks())
    parts = dict(found.parts)
    generation = parts.pop("generation")
    assert found.step_seconds == max(generation, sum(parts.values()))
    # Servers with GPUs of their own are not added to the trainer's memory.
    assert not any("beside" in each.what for each in found.verdicts)


def test_forecast_json_can_be_read_back() -> None:
    found = json.loads(json.dumps(forecast(job(VLLM), ranks()).to_json()))
    assert found["fits"] is True
    assert found["seconds"]["step"] == pytest.approx(sum(found["seconds"]["parts"].values()))
    assert RankRecord.from_json(found["ranks"][1]) == ranks()[1]


def test_report_has_every_part_of_the_forecast() -> None:
    text = "\n".join(report(forecast(job(VLLM), ranks(peak=90 * GIB))))
    for said in (
        "1 x 8 h100 with 79.6 GiB each: PP2 DP4",
        "update   first stage",
        "activations 89.0, weights 1.0",
        "policy/log_probs.py:70",
        "data       4  all_gather      2  1.00",
        "  and 1 of less than 10 MB and 10 ms",
        "training/updating.py:100",
        "a step:",
        "not part of a step: build",
        "does not fit: update, first stage needs 103.0 GiB of 79.6",
        "  - algorithm.micro_batch_size: 1 halves the activations",
    ):
        assert said in text, f"{said!r} is not in\n{text}"
    assert max(map(len, text.splitlines())) < 200
