"""vLLM's share of a GPU and how long it generates."""

from __future__ import annotations

import dataclasses

import pytest
from planned_models import LLAMA_8B, LLAMA_70B, QWEN_30B, shape_of

from megatron_resrl.config.schema import VllmConfig
from megatron_resrl.planning.generation import (
    BLOCK_TOKENS,
    DEFAULT_UTILIZATION,
    Server,
    concurrent_responses,
    generation_seconds,
    server_memory,
    transfer_seconds,
)
from megatron_resrl.planning.gpus import GPUS
from megatron_resrl.planning.lengths import Lengths
from megatron_resrl.planning.links import COLLECTIVE_S
from megatron_resrl.planning.step_shape import StepShape

H100 = GPUS["h100"]
SERVER = Server(gpus=1, utilization=0.6, max_running=256, batched_tokens=8192)


def step(responses: int, mean: float, limit: int) -> StepShape:
    """One prompt of 16 tokens, with all responses in one group."""
    return StepShape(
        prompts=1,
        group_size=responses,
        prompt_tokens=16,
        lengths=Lengths(mean, limit),
        replicas=1,
        updates=1,
        micro_batch_size=1,
        packed=False,
    )


def test_server_reads_vllm_arguments() -> None:
    vllm = VllmConfig(
        tensor_parallel_size=4,
        max_running_requests=64,
        arguments={"gpu-memory-utilization": 0.5, "--max_num_batched_tokens": 2048},
    )
    assert Server.of(vllm) == Server(4, 0.5, 64, 2048)
    assert Server.of(VllmConfig()).utilization == DEFAULT_UTILIZATION


def test_server_memory_is_its_share_without_weights() -> None:
    memory = server_memory(SERVER, shape_of(LLAMA_8B), H100)
    assert memory.share == int(0.6 * H100.memory)
    assert memory.weights == 2 * 8_030_261_248
    assert memory.cache == memory.share - memory.weights - memory.activations
    # 70B in 16 bits is more than a GPU; over four there is room.
    big = shape_of(LLAMA_70B)
    assert server_memory(SERVER, big, H100).cache < 0
    assert server_memory(dataclasses.replace(SERVER, gpus=4), big, H100).cache > 0


def test_concurrent_responses_fill_blocks_of_the_cache() -> None:
    model = shape_of(LLAMA_8B)
    memory = server_memory(SERVER, model, H100)
    # 2 (keys, values) x 2 bytes x 8 heads x 128 x 32 layers for each token.
    per_token = 2 * 2 * 8 * 128 * 32
    assert model.cache_per_token == per_token
    blocks = memory.cache // (per_token * BLOCK_TOKENS)
    many = dataclasses.replace(SERVER, max_running=10**6)
    assert concurrent_responses(many, memory, model, 1000) == blocks // 63
    assert concurrent_responses(SERVER, memory, model, 20) == 256


def test_cache_heads_are_copied_beyond_their_number() -> None:
    model = shape_of(QWEN_30B)
    assert model.key_heads == 4
    four, eight = (dataclasses.replace(SERVER, gpus=gpus, max_running=10**6) for gpus in (4, 8))
    memory = server_memory(dataclasses.replace(SERVER, gpus=4), model, H100)
    # The same cache holds no more responses on 8 GPUs, each of which has one head as on 4.
    assert concurrent_responses(four, memory, model, 1000) == concurrent_responses(
        eight, memory, model, 1000
    )


def test_decoding_one_response_reads_the_weights_each_step() -> None:
    model = shape_of(LLAMA_8B)
    found = generation_seconds(step(1, 1000, 1000), 1, SERVER, model, H100)
    assert found is not None
    # All weights but the embedding's, and on average 516 tokens of cache.
    read = 2 * (8_030_261_248 - 128256 * 4096) + 516 * model.cache_per_token
    assert found.steps == pytest.approx(1000)
    assert found.decode == pytest.approx(1000 * read / (3.35e12 * 0.77), rel=1e-3)


def test_decoding_large_batches_is_bound_by_products() -> None:
    model = shape_of(LLAMA_8B)
    wide = dataclasses.replace(SERVER, max_running=4096, utilization=0.9)
    found = generation_seconds(step(1024, 64, 64), 1, wide, model, H100)
    assert found is not None
    flops = 2 * model.active_parameters * 1024 * 64
    assert found.running == 1024
    assert found.decode > flops / H100.matrix_rate("bfloat16")


def test_tensor_parallel_decoding_waits_for_each_layer() -> None:
    model = shape_of(LLAMA_70B)
    four = dataclasses.replace(SERVER, gpus=4)
    found = generation_seconds(step(1, 100, 100), 1, four, model, H100)
    assert found is not None
    read = 2 * (model.parameters.total - 128256 * 8192) / 4
    layers = 2 * 80 * COLLECTIVE_S
    assert found.decode == pytest.approx(100 * (read / (3.35e12 * 0.77) + layers), rel=0.01)


def test_host_time_is_added_to_each_decoding_step() -> None:
    model = shape_of(LLAMA_8B)
    plain, slow = (
        generation_seconds(step(4, 100, 100), 1, SERVER, model, H100, host_s=host)
        for host in (0.0, 0.005)
    )
    assert plain is not None
    assert slow is not None
    assert slow.total - plain.total == pytest.approx(100 * 0.005)


def test_waiting_responses_decode_after_the_running_ones() -> None:
    model = shape_of(LLAMA_8B)
    narrow = dataclasses.replace(SERVER, max_running=8)
    once = generation_seconds(step(8, 100, 100), 1, narrow, model, H100)
    thrice = generation_seconds(step(24, 100, 100), 1, narrow, model, H100)
    assert once is not None
    assert thrice is not None
    assert thrice.steps == pytest.approx(3 * once.steps)
    # Two servers share them, 12 each.
    shared = generation_seconds(step(24, 100, 100), 2, narrow, model, H100)
    assert shared is not None
    assert shared.steps == pytest.approx(150)


def test_few_tokens_read_few_experts() -> None:
    model = shape_of(QWEN_30B)
    one = generation_seconds(step(1, 100, 100), 1, SERVER, model, GPUS["b200"])
    many = generation_seconds(step(200, 100, 100), 1, SERVER, model, GPUS["b200"])
    assert one is not None
    assert many is not None
    # One token goes to 8 of 128 experts; 200 tokens to nearly all.
    assert many.decode > 6 * one.decode


def test_generation_without_room_for_one_response_is_none() -> None:
    model = shape_of(LLAMA_70B)
    assert generation_seconds(step(1, 10, 10), 1, SERVER, model, H100) is None


def test_transfer_moves_all_weights() -> None:
    assert transfer_seconds(shape_of(LLAMA_8B)) == pytest.approx(2 * 8_030_261_248 / 5e9)
