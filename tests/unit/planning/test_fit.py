"""Whether a job fits, and what would help."""

from __future__ import annotations

import dataclasses

import pytest
from planned_models import phase_record

from megatron_resrl.config.schema import (
    AlgorithmConfig,
    ModelConfig,
    ParallelConfig,
    Recipe,
    RolloutConfig,
)
from megatron_resrl.planning.fit import (
    ASLEEP_BYTES,
    advice,
    server_advice,
    server_verdicts,
    trainer_verdicts,
    with_margin,
)
from megatron_resrl.planning.generation import Server, ServerMemory
from megatron_resrl.planning.gpus import GPUS
from megatron_resrl.planning.records import RankRecord

H100 = GPUS["h100"]
GIB = 2**30
SERVER = Server(gpus=1, utilization=0.6, max_running=256, batched_tokens=8192)


def test_margin_is_a_tenth_and_two_gib() -> None:
    assert with_margin(50 * GIB) == 57 * GIB


@pytest.mark.parametrize(("peak", "asleep", "fits"), [(70, False, True), (70, True, False)])
def test_verdict_leaves_room_for_a_sleeping_server(peak: int, asleep: bool, fits: bool) -> None:
    ranks = [RankRecord(0, "all stages", (phase_record(peak=peak * GIB),))]
    (verdict,) = trainer_verdicts(ranks, H100, asleep_engine=asleep)
    assert verdict.what == "update, all stages"
    assert verdict.needed == int(1.1 * peak * GIB) + 2 * GIB + asleep * ASLEEP_BYTES
    assert verdict.fits is fits


def test_verdict_of_vllm_needs_room_for_one_response() -> None:
    memory = ServerMemory(share=48 * GIB, weights=40 * GIB, activations=4 * GIB)
    for per_response, fits in ((4 * GIB, True), (5 * GIB, False)):
        (verdict,) = server_verdicts(SERVER, memory, H100, per_response=per_response, resident=0)
        assert verdict.fits is fits


def test_verdict_of_vllm_beside_the_trainer_adds_both() -> None:
    memory = ServerMemory(share=48 * GIB, weights=16 * GIB, activations=2 * GIB)
    _, small = server_verdicts(SERVER, memory, H100, per_response=GIB, resident=20 * GIB)
    assert (small.needed, small.fits) == (72 * GIB, True)
    _, large = server_verdicts(SERVER, memory, H100, per_response=GIB, resident=40 * GIB)
    assert not large.fits
    # 94 GiB of 79.6: the server has to give 14.4 back.
    (share, _) = server_advice(SERVER, large, H100)
    assert "gpu-memory-utilization: 0.42" in share


def recipe(**changes: object) -> Recipe:
    return dataclasses.replace(Recipe(), **changes)


def test_advice_against_activations_starts_with_free_changes() -> None:
    found = advice(
        recipe(parallel=ParallelConfig(tensor_model_parallel_size=2)),
        phase_record(kinds={"weights": 1, "activations": 9}),
        over=1,
        gpus_per_node=8,
    )
    assert found[0].startswith("algorithm.micro_batch_size: 2")
    assert found[1].startswith("parallel.sequence_parallel: true")
    assert found[2].startswith("model.recompute_granularity: full")
    assert found[-2].startswith("parallel.tensor_model_parallel_size: 4")
    assert found[-1].startswith("parallel.pipeline_model_parallel_size: 2")


def test_advice_does_not_repeat_what_is_done() -> None:
    found = advice(
        recipe(
            parallel=ParallelConfig(
                tensor_model_parallel_size=8, sequence_parallel=True, context_parallel_size=2
            ),
            model=ModelConfig(recompute_granularity="full"),
            algorithm=AlgorithmConfig(micro_batch_size=1),
        ),
        phase_record(kinds={"activations": 9}),
        over=1,
        gpus_per_node=8,
    )
    assert found == ["parallel.pipeline_model_parallel_size: 2 halves the layers of a rank"]


def test_advice_against_the_optimizer_distributes_it() -> None:
    found = advice(
        recipe(parallel=ParallelConfig(use_distributed_optimizer=False)),
        phase_record(kinds={"optimizer": 9, "activations": 1}),
        over=1,
        gpus_per_node=8,
    )
    assert found[0].startswith("parallel.use_distributed_optimizer: true")


GIBS = {
    "activations": {"activations": 40 * GIB, "weights": 10 * GIB},
    "optimizer": {"optimizer": 40 * GIB, "weights": 10 * GIB},
    "weights": {"weights": 30 * GIB, "gradients": 20 * GIB},
    "gradients": {"weights": 20 * GIB, "gradients": 30 * GIB},
    "KV cache": {"KV cache": 40 * GIB, "weights": 10 * GIB},
}


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        # 11 GiB with the margin are 10 without: a quarter of the activations.
        ("activations", "algorithm.micro_batch_size: 4 halves the activations: 20.0 GiB less"),
        ("optimizer", "twice the --nodes halve the optimizer's state of a rank: 20.0 GiB less"),
        (
            "weights",
            "parallel.tensor_model_parallel_size: 2 halves the weights of a rank: 25.0 GiB less",
        ),
        (
            "gradients",
            "parallel.tensor_model_parallel_size: 2 halves the weights of a rank: 25.0 GiB less",
        ),
        (
            "KV cache",
            "rollout.max_running_samples: 32 halves the key-value cache: 20.0 GiB less, for longer "
            "decoding",
        ),
    ],
)
def test_advice_says_what_each_kind_gives_back(kind: str, first: str) -> None:
    own = recipe(
        algorithm=AlgorithmConfig(micro_batch_size=8),
        rollout=RolloutConfig(max_running_samples=64, group_size=8),
    )
    found = advice(own, phase_record(kinds=GIBS[kind]), over=11 * GIB, gpus_per_node=8)
    assert found[0] == first


def test_advice_takes_as_much_as_is_missing() -> None:
    own = recipe(algorithm=AlgorithmConfig(micro_batch_size=8))
    found = advice(own, phase_record(kinds=GIBS["activations"]), over=33 * GIB, gpus_per_node=8)
    assert found[0] == "algorithm.micro_batch_size: 2 makes them 2/8: 30.0 GiB less"


def test_advice_for_experts_splits_them() -> None:
    own = recipe(parallel=ParallelConfig(expert_model_parallel_size=4))
    found = advice(own, phase_record(kinds=GIBS["weights"]), over=GIB, gpus_per_node=8)
    assert found[0] == "parallel.expert_model_parallel_size: 8 halves the experts of a rank"


def test_advice_for_vllm_says_the_share_that_is_enough() -> None:
    memory = ServerMemory(share=48 * GIB, weights=40 * GIB, activations=4 * GIB)
    (verdict,) = server_verdicts(SERVER, memory, H100, per_response=10 * GIB, resident=0)
    found = server_advice(SERVER, verdict, H100)
    # 54 GiB of 79.6.
    assert found == [
        "vllm.tensor_parallel_size: 2 halves the weights on a GPU",
        "vllm.arguments: {gpu-memory-utilization: 0.68} is just enough",
    ]
    (verdict,) = server_verdicts(SERVER, memory, H100, per_response=40 * GIB, resident=0)
    assert len(server_advice(SERVER, verdict, H100)) == 1
