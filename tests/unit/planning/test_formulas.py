"""Closed forms of scoring and update, against measured bytes and the sizes of a rank."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from planned_models import LLAMA_8B, LLAMA_70B, QWEN_30B, shape_of

from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig
from megatron_resrl.planning.formulas import Stage, estimate, stages_of
from megatron_resrl.planning.lengths import Lengths
from megatron_resrl.planning.model_layout import Layout
from megatron_resrl.planning.records import PhaseRecord
from megatron_resrl.planning.step_shape import StepShape
from megatron_resrl.policy.sizes import sizes_of


def layout(
    config: dict[str, Any], world: int, recompute: str | None = None, **parallel: Any
) -> Layout:
    full = recompute == "full"
    model = ModelConfig(
        recompute_granularity=recompute,  # type: ignore[arg-type]
        recompute_method="uniform" if full else None,
        recompute_num_layers=1 if full else None,
    )
    sizes = ParallelConfig(**parallel)
    return Layout.of(shape_of(config), model, sizes, "bf16", False, world)


def step(tokens: int = 4096, responses: int = 64, replicas: int = 8, rows: int = 1) -> StepShape:
    return StepShape(
        prompts=responses // 8,
        group_size=8,
        prompt_tokens=2048,
        lengths=Lengths(tokens, tokens),
        replicas=replicas,
        updates=2,
        micro_batch_size=rows,
        packed=True,
    )


def phases(layout: Layout, of: StepShape, role: str) -> dict[str, PhaseRecord]:
    (rank,) = (rank for rank in estimate(layout, of.work, of.work) if rank.role == role)
    return {phase.name: phase for phase in rank.phases}


TP8_PP8 = {
    "tensor_model_parallel_size": 8,
    "pipeline_model_parallel_size": 8,
    "sequence_parallel": True,
}


@pytest.mark.parametrize(
    ("config", "parallel"),
    [
        (LLAMA_8B, {}),
        (LLAMA_8B, {"tensor_model_parallel_size": 2, "use_distributed_optimizer": False}),
        (LLAMA_70B, TP8_PP8),
        (QWEN_30B, {"expert_model_parallel_size": 8}),
    ],
    ids=["8B", "8B-TP2", "70B", "experts"],
)
def test_static_bytes_are_those_of_check(config: dict[str, Any], parallel: dict[str, Any]) -> None:
    of_check = sizes_of(ParallelConfig(**parallel), PrecisionConfig(), 64, config)
    held = [stage.static_bytes for stage in stages_of(layout(config, 64, **parallel)).values()]
    for kind in ("weights", "gradients", "optimizer"):
        assert max(each[kind] for each in held) == pytest.approx(getattr(of_check, kind), rel=1e-6)


def test_saved_bytes_match_a_layer_of_transformer_engine() -> None:
    # Counted with Transformer Engine's own layers: 0.2155 GiB for one layer and micro-batch of 6143
    # tokens of Llama 3 70B with TP8 and sequence parallelism.
    stage = Stage(layout(LLAMA_70B, 512, **TP8_PP8), first=True, last=False)
    assert stage.saved_bytes(6143) == pytest.approx(0.2155 * 2**30, rel=0.03)


def test_update_gathers_and_reduces_as_often_as_megatron() -> None:
    # Counted for one update of 8 micro-batches on 10 layers: 328 reduce-scatters of 33.0 GB and 488
    # all-gathers of 49.1 GB, embedding and gradients' norm included; here are two updates.
    found = phases(layout(LLAMA_70B, 512, **TP8_PP8), step(responses=128), "first stage")
    wires = {(each.group, each.collective): each for each in found["update"].traffic}
    scatter = wires["tensor", "reduce_scatter"]
    gather = wires["tensor", "all_gather"]
    assert scatter.calls == pytest.approx(2 * 328, rel=0.03)
    assert gather.calls == pytest.approx(2 * 488, rel=0.03)
    # A rank sends seven eighths of what is gathered.
    assert scatter.bytes == pytest.approx(2 * 33.0e9 * 7 / 8, rel=0.03)
    assert gather.bytes == pytest.approx(2 * 49.1e9 * 7 / 8, rel=0.03)


def test_forward_flops_are_two_for_each_weight_and_token() -> None:
    stage = Stage(layout(LLAMA_8B, 1), first=True, last=True)
    model = stage.layout.model
    without_attention = stage.forward_flops(1000, 0, 1000)
    assert without_attention == pytest.approx(2 * model.active_parameters * 1000)
    # A row of 4096: on average 2048 tokens are attended to, by two products.
    attention = stage.forward_flops(1000, 1000 * 2048, 1000) - without_attention
    assert attention == pytest.approx(32 * 1000 * 4 * 4096 * 2048)


def test_shared_prompts_take_one_prompt_through_the_layers() -> None:
    copies = step(tokens=1024, rows=4)
    shared = dataclasses.replace(copies, together=8)
    assert (copies.work.tokens, shared.work.tokens) == (4 * 3072, 2048 + 4 * 1024)
    # A response sees the prompt and the half of itself.
    assert copies.work.pairs == 4 * 3072**2 / 2
    assert shared.work.pairs == 2048**2 / 2 + 4 * 1024 * (2048 + 512)
    assert shared.work.targets == copies.work.targets
    # A micro-batch of two groups has two prompts.
    assert dataclasses.replace(shared, micro_batch_size=16).work.tokens == 2 * 2048 + 16 * 1024


def test_shared_prompts_hold_less_but_for_their_keys() -> None:
    of = layout(LLAMA_8B, 8)
    copies = step(tokens=1024, rows=4)
    shared = dataclasses.replace(copies, together=8)
    held = {
        name: phases(of, each, "all stages")["update"].peak_by_kind["activations"] - 2**30
        for name, each in (("copies", copies), ("shared", shared))
    }
    # Keys and values of the prompt are there for each of the four responses.
    keys = 32 * 2 * 2 * 1024 * 4 * 2048
    assert held["shared"] - keys == pytest.approx(held["copies"] * 6144 / 12288)


def test_full_recomputation_costs_a_forward_pass() -> None:
    plain, full = (
        phases(layout(LLAMA_8B, 8, recompute), step(), "all stages")["update"]
        for recompute in (None, "full")
    )
    stage, work = Stage(layout(LLAMA_8B, 8), first=True, last=True), step().work
    layers = stage.forward_flops(work.tokens, work.pairs, 0)
    again = full.matrix_flops["bfloat16"] - plain.matrix_flops["bfloat16"]
    assert again == pytest.approx(work.micro_batches * layers, rel=1e-6)
    assert full.peak_by_kind["activations"] < 0.2 * plain.peak_by_kind["activations"]


def test_first_stage_holds_a_micro_batch_for_each_stage() -> None:
    found = layout(LLAMA_70B, 512, **TP8_PP8)
    first = phases(found, step(responses=512), "first stage")["update"]
    last = phases(found, step(responses=512), "last stage")["update"]
    one = Stage(found, first=True, last=False).saved_bytes(6144)
    assert first.peak_by_kind["activations"] == pytest.approx(8 * 10 * one)
    assert last.peak_by_kind["activations"] == pytest.approx(10 * one + 2**30)


def test_context_parallel_ranks_share_tokens() -> None:
    one, two = (
        phases(layout(LLAMA_8B, 8, context_parallel_size=size), step(replicas=1), "all stages")
        for size in (1, 2)
    )
    assert two["scoring"].matrix_flops["bfloat16"] == pytest.approx(
        one["scoring"].matrix_flops["bfloat16"] / 2
    )
    assert any(each.group == "context" for each in two["update"].traffic)


def test_experts_exchange_tokens_twice_in_each_layer() -> None:
    found = phases(
        layout(QWEN_30B, 8, expert_model_parallel_size=8), step(responses=8), "all stages"
    )["scoring"]
    (exchange,) = (each for each in found.traffic if each.group == "expert")
    assert exchange.calls == 8 * 2 * 48
    # Each token goes to 8 experts, seven eighths of them on other ranks.
    assert exchange.bytes == pytest.approx(8 * 2 * 48 * 2 * 6144 * 8 * 2048 * 7 / 8)


def test_fp8_products_are_those_of_the_layers() -> None:
    plain = layout(LLAMA_8B, 8)
    fp8 = dataclasses.replace(plain, dtype="float8_e4m3fn")
    one, two = (phases(of, step(), "all stages")["update"] for of in (plain, fp8))
    assert set(two.matrix_flops) == {"float8_e4m3fn", "bfloat16"}
    assert sum(two.matrix_flops.values()) == pytest.approx(one.matrix_flops["bfloat16"], rel=1e-9)
    # 6.98 billion weights of layers, three products of two operations each for every token.
    layers = 3 * 2 * plain.model.parameters.in_layers * step().work.tokens * 8
    assert two.matrix_flops["float8_e4m3fn"] == pytest.approx(layers, rel=1e-3)


def test_fp8_weights_are_held_twice() -> None:
    # Dry-run on Transformer Engine's layers: 4.0 GiB for the last stage of the 70B with TP8 PP4.
    parallel = TP8_PP8 | {"pipeline_model_parallel_size": 4}
    of = dataclasses.replace(layout(LLAMA_70B, 512, **parallel), dtype="float8_e4m3fn")
    held = Stage(of, first=False, last=True).static_bytes["FP8 weights"]
    assert held == pytest.approx(4.0 * 2**30, rel=0.01)


@pytest.mark.parametrize(
    ("first", "last", "chunks", "micro_batches", "held"),
    [
        (True, False, None, 16, 8),
        (False, False, None, 16, 7),
        (False, True, None, 16, 1),
        (True, False, None, 4, 4),
        # Interleaved: 8 chunks of warm-up, two more for each stage behind, and one.
        (True, False, 2, 16, (8 + 14 + 1) / 2),
        (False, True, 2, 16, (8 + 1) / 2),
        (True, False, 2, 8, 8),
    ],
)
def test_in_flight_are_the_warm_ups_micro_batches(first, last, chunks, micro_batches, held) -> None:
    of = layout(LLAMA_70B, 64, virtual_pipeline_model_parallel_size=chunks, **TP8_PP8)
    assert Stage(of, first, last).in_flight(micro_batches) == held


def test_virtual_stages_send_each_chunk() -> None:
    plain, virtual = (
        phases(
            layout(LLAMA_70B, 64, virtual_pipeline_model_parallel_size=chunks, **TP8_PP8),
            step(replicas=1),
            "middle stage",
        )["update"]
        for chunks in (None, 2)
    )
    sent = [
        next(each for each in record.traffic if each.group == "pipeline").calls
        for record in (plain, virtual)
    ]
    assert sent[1] == 2 * sent[0]


def test_interleaved_micro_batches_fill_whole_rounds() -> None:
    of = layout(LLAMA_70B, 64, virtual_pipeline_model_parallel_size=2, **TP8_PP8)
    assert [of.scheduled(count) for count in (1, 8, 9)] == [8, 8, 16]
    assert layout(LLAMA_70B, 64, **TP8_PP8).scheduled(9) == 9


def test_selective_recomputation_does_attention_again() -> None:
    plain, selective = (
        phases(layout(LLAMA_8B, 8, recompute), step(), "all stages")["update"]
        for recompute in (None, "selective")
    )
    again = selective.matrix_flops["bfloat16"] / plain.matrix_flops["bfloat16"] - 1
    # Attention over rows of 6144 tokens is a fifth of the 8B's operations, and a third of them
    # is forward.
    assert 0.02 < again < 0.08
    assert selective.peak_bytes < plain.peak_bytes
