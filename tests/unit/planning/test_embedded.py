"""The policy as its own engine: rows, cache and seconds."""

from __future__ import annotations

import dataclasses

import pytest
from planned_models import LLAMA_8B, shape_of

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.planning.embedded import EmbeddedEngine
from megatron_resrl.planning.generation import Decoder
from megatron_resrl.planning.gpus import GPUS
from megatron_resrl.planning.lengths import Lengths
from megatron_resrl.planning.seconds import KERNELS_PER_LAYER, LAUNCH_S
from megatron_resrl.planning.step_shape import StepShape

H100 = GPUS["h100"]
MODEL = shape_of(LLAMA_8B)
STEP = StepShape(
    prompts=32,
    group_size=8,
    prompt_tokens=100,
    lengths=Lengths(400, 400),
    replicas=4,
    updates=1,
    micro_batch_size=1,
    packed=False,
)


def engine(max_running: int = 64, **parallel: int) -> EmbeddedEngine:
    return EmbeddedEngine(MODEL, ParallelConfig(**parallel), max_running)


@pytest.mark.parametrize(("max_running", "rows"), [(64, 64), (50, 48), (4, 8), (1000, 64)])
def test_rows_are_whole_groups_of_a_replica(max_running: int, rows: int) -> None:
    # 32 prompts on 4 replicas: 8 groups of 8.
    assert engine(max_running).rows(STEP) == rows


def test_cache_is_divided_over_stages_and_heads() -> None:
    whole = engine().cache_bytes(STEP)
    assert whole == 64 * 500 * MODEL.cache_per_token
    assert engine(pipeline_model_parallel_size=4).cache_bytes(STEP) == whole / 4
    assert engine(tensor_model_parallel_size=8).cache_bytes(STEP) == whole / 8
    # There are 8 key-value heads: 16 ranks have copies.
    assert engine(tensor_model_parallel_size=16).cache_bytes(STEP) == whole / 8


def test_embedded_decoding_takes_at_least_its_launches() -> None:
    found = engine(8, tensor_model_parallel_size=8).seconds(STEP, H100)
    # Eight batches of one group each, of 400 tokens.
    assert found.steps == pytest.approx(8 * 400)
    launches = 32 * KERNELS_PER_LAYER * LAUNCH_S
    decoder = Decoder(MODEL, 8, H100, 0.0)
    assert found.decode == pytest.approx(
        8 * 400 * max(launches, decoder.step_seconds(8, 300)), rel=1e-3
    )


def test_context_parallel_ranks_decode_prompts_of_their_own() -> None:
    one = engine(8).seconds(STEP, H100)
    two = engine(8, context_parallel_size=2).seconds(STEP, H100)
    assert two.total == pytest.approx(one.total / 2)


def test_short_responses_leave_the_batch() -> None:
    short = dataclasses.replace(STEP, lengths=Lengths(50, 400))
    assert engine().seconds(short, H100).total < 0.95 * engine().seconds(STEP, H100).total
