"""Dry runs on Transformer Engine's own layers: what is counted in bf16 and in FP8."""

from pathlib import Path

import pytest
from dry_runs import ENGINE, phases_of, write_config
from te_on_cpu.suite import needs_engine

pytestmark = needs_engine

TOKENS = 63
"""Fed of each of eight responses."""
LAYERS = 4 * (128 * (128 + 64 + 64 + 128) + 3 * 128 * 384)
"""Weights of the layers' matrices."""
HEAD = 1024 * 128 * 40
PER_STEP = {"scoring": 21, "subspace": 12, "update": 9}
"""Phase -> waits of a step of one window, that do not grow with its micro-batches."""
TP2 = ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true")
VLLM = "rollout.engine=vllm"
"""Nothing is decoded."""
FULL_RECOMPUTE = (
    "model.recompute_granularity=full",
    "model.recompute_method=uniform",
    "model.recompute_num_layers=1",
)


def fp8(recipe: str) -> tuple[str, str]:
    return "precision.fp8=hybrid", f"precision.fp8_recipe={recipe}"


def attention(tokens: int) -> float:
    """Two products over half of a square, of one response."""
    return 4 * 4 * tokens * tokens / 2 * 128


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("dense"))


def test_engine_dry_run_counts_the_products_of_the_model(model):
    phases = phases_of(model, VLLM, layers=ENGINE)
    forward = 8 * (2 * (LAYERS * TOKENS + HEAD) + attention(TOKENS))
    assert phases["scoring"].matrix_flops["bfloat16"] == pytest.approx(forward, rel=0.01)
    backward = 8 * (2 * (2 * LAYERS * TOKENS + 3 * HEAD) + 2.5 * attention(TOKENS))
    update = phases["update"].matrix_flops["bfloat16"]
    assert update == pytest.approx(forward + backward, rel=0.01)


def test_engine_dry_run_waits_do_not_grow_with_micro_batches(model):
    few, more = (
        {name: sum(each.count for each in phases[name].waits) for name in PER_STEP}
        for phases in (
            phases_of(model, VLLM, layers=ENGINE),  # Two prompts.
            phases_of(model, VLLM, "rollout.prompts_per_step=3", layers=ENGINE),
        )
    )
    assert all(few[name] <= limit for name, limit in PER_STEP.items()), few
    assert [more[name] - few[name] for name in ("scoring", "update")] == [0, 0]


@pytest.mark.slow
def test_engine_dry_run_shares_prompts(model):
    settings = ("algorithm.shared_prompts=auto", "algorithm.micro_batch_size=4")
    phases = phases_of(model, VLLM, *settings, layers=ENGINE)
    # Of each group: 24 tokens once, and 39 of each response, which see them and themselves.
    # Scoring has them twice, because correct responses come first.
    for name, prompts, passes, scores, heads in (("scoring", 2, 1, 1, 1), ("update", 1, 3, 3.5, 4)):
        tokens = prompts * 24 + 4 * 39
        pairs = prompts * 24 * 24 / 2 + 4 * 39 * (24 + 39 / 2)
        products = 2 * (passes * LAYERS * tokens + heads * 4 * HEAD)
        expected = 2 * (products + scores * 4 * 4 * pairs * 128)
        assert phases[name].matrix_flops["bfloat16"] == pytest.approx(expected, rel=0.01)
    waits = {name: sum(each.count for each in phases[name].waits) for name in PER_STEP}
    assert all(waits[name] <= limit for name, limit in PER_STEP.items()), waits


def test_engine_dry_run_counts_fp8(model):
    phases = phases_of(model, VLLM, *TP2, *fp8("tensorwise"), rank=1, world_size=2, layers=ENGINE)
    # Rows are 64 tokens long, for FP8 products take multiples of 16; two ranks share the matrices.
    in_fp8 = 8 * 2 * LAYERS * (TOKENS + 1) / 2
    in_bf16 = 8 * (2 * HEAD + attention(TOKENS + 1)) / 2
    scoring, update = (phases[name].matrix_flops for name in ("scoring", "update"))
    assert scoring["float8_e4m3fn"] == in_fp8
    assert scoring["bfloat16"] == pytest.approx(in_bf16, rel=0.01)
    assert sum(flops for name, flops in update.items() if "float8" in name) == 3 * in_fp8
    # Ranks with a share of a tensor's rows agree on its largest number: of the inputs of two
    # matrices in each layer and micro-batch.
    traffic = {(each.group, each.collective): each for each in phases["scoring"].traffic}
    reduced, gathered = traffic["tensor", "all_reduce"], traffic["tensor", "all_gather"]
    assert reduced.calls >= 4 * 4 * 2
    # A fp32 number each, and statistics of chunks of log-probabilities.
    assert reduced.bytes / reduced.calls < 5000
    # Rows that are gathered for them are in FP8: [64, 2, 128], half of which comes from here.
    assert gathered.bytes < 1.3 * 4 * 4 * 2 * (64 * 2 * 128) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "world_size", "gpu"),
    [
        (fp8("delayed"), 1, "h100"),
        (fp8("blockwise"), 1, "h100"),
        (fp8("mxfp8"), 1, "b200"),
        ((*TP2, *fp8("blockwise"), *FULL_RECOMPUTE), 2, "h100"),
        ((*TP2, "algorithm.sequence_packing=true"), 2, "h100"),
        (("parallel.context_parallel_size=2", "algorithm.sequence_packing=true"), 2, "h100"),
        (("parallel.pipeline_model_parallel_size=2", *fp8("tensorwise")), 2, "h100"),
    ],
    ids=["delayed", "blockwise", "mxfp8", "blockwise_tp2", "packed_tp2", "packed_cp2", "pp2"],
)
def test_engine_dry_run_takes_every_layout(model, settings, world_size, gpu):
    phases = phases_of(
        model, *settings, rank=world_size - 1, world_size=world_size, layers=ENGINE, gpu=gpu
    )
    in_fp8 = [name for name in phases["update"].matrix_flops if "float8" in name]
    assert bool(in_fp8) == any("fp8=" in setting for setting in settings)


@pytest.mark.slow
def test_engine_dry_run_leaves_layers_at_the_ends_in_bf16(model):
    ends = ("precision.num_layers_at_start_in_bf16=1", "precision.num_layers_at_end_in_bf16=1")
    flops = phases_of(model, VLLM, *fp8("tensorwise"), *ends, layers=ENGINE)["scoring"].matrix_flops
    half = 8 * 2 * LAYERS * (TOKENS + 1) / 2
    assert flops["float8_e4m3fn"] == half
    rest = half + 8 * (2 * HEAD + attention(TOKENS + 1))
    assert flops["bfloat16"] == pytest.approx(rest, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), fp8("tensorwise")], ids=["bf16", "fp8"])
def test_engine_dry_run_shares_tokens_among_experts(tmp_path, settings):
    model = write_config(tmp_path, experts=True)
    ep2 = "parallel.expert_model_parallel_size=2"
    update = phases_of(
        model, *settings, ep2, "rollout.prompts_per_step=4", world_size=2, layers=ENGINE
    )["update"]
    tokens = 8 * (TOKENS + 1 if settings else TOKENS)
    # A token goes to two of the experts, and a rank has as many tokens as the other.
    experts = 4 * 2 * 3 * 128 * 64 * tokens
    dense = 4 * 128 * (128 + 64 + 64 + 128) * tokens
    expected = 3 * 2 * (experts + dense)
    if settings:
        assert update.matrix_flops["float8_e4m3fn"] == pytest.approx(expected, rel=0.05)
    else:
        others = 8 * (4 * 2 * HEAD + 3.5 * attention(TOKENS))
        assert update.matrix_flops["bfloat16"] == pytest.approx(expected + others, rel=0.01)
