"""Dry runs of jobs that no test machine could hold."""

import json
from pathlib import Path
from typing import Any

import pytest
from dry_runs import ENGINE, engine_on_path
from te_on_cpu.suite import needs_engine

from megatron_resrl.config.load import load_recipe
from megatron_resrl.planning.dry_run import dry_run
from megatron_resrl.planning.layers import Layers
from megatron_resrl.planning.machine import Machine
from megatron_resrl.planning.records import PhaseRecord
from megatron_resrl.planning.workload import Workload

GIB = 2**30
LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
QUARTER_OF_QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 12,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
TP8_PP8 = (
    "parallel.tensor_model_parallel_size=8",
    "parallel.sequence_parallel=true",
    "parallel.pipeline_model_parallel_size=8",
    "rollout.prompts_per_step=8",
    "rollout.group_size=4",
)
FULL_RECOMPUTE = (
    "model.recompute_granularity=full",
    "model.recompute_method=uniform",
    "model.recompute_num_layers=1",
)


def phases(
    folder: Path,
    config: dict,
    rank: int,
    world: int,
    load: Workload,
    *settings: str,
    layers: Layers = "local",
) -> dict[str, PhaseRecord]:
    """The phases of a rank, by name."""
    (folder / "config.json").write_text(json.dumps(config))
    own = (f"model.path={folder}", "rollout.engine=vllm", "algorithm.micro_batch_size=1")
    recipe = load_recipe(None, [f"--{setting}" for setting in (*own, *settings)])
    record = dry_run(recipe, rank, world, load, machine=Machine(layers))
    return {phase.name: phase for phase in record.phases}


def peaks(*arguments: Any) -> dict[str, float]:
    """Peak GiB of each phase."""
    return {name: phase.peak_bytes / GIB for name, phase in phases(*arguments).items()}


@pytest.mark.slow  # 20 s of one core.
def test_dry_run_of_70b_on_512_ranks(tmp_path):
    found = peaks(
        tmp_path,
        LLAMA_70B,
        455,
        512,
        Workload(2048, 4096),
        *TP8_PP8,
    )
    # bf16 weights, fp32 gradients, and an eighth of masters and moments: 8.4 GiB; on top in the
    # update one micro-batch of ten layers and the logits.
    assert 8.4 < found["scoring"] < 9.5
    assert 11 < found["update"] < 12.5


@pytest.mark.slow  # 45 s of one core.
@needs_engine
def test_dry_run_of_70b_on_engine_layers(tmp_path):
    job = (tmp_path, LLAMA_70B, 455, 512, Workload(2048, 4096), *TP8_PP8)
    with engine_on_path():
        bf16 = phases(*job, layers=ENGINE)
        fp8 = phases(*job, "precision.fp8=hybrid", layers=ENGINE)
    # As on local layers.
    assert 8.4 < bf16["scoring"].peak_bytes / GIB < 9.5
    assert 11 < bf16["update"].peak_bytes / GIB < 12.5
    # Two FP8 copies of the weights of ten layers, for the products forward and backward.
    weights = 10 * (8192 * (2 * 8192 + 2 * 1024) + 3 * 8192 * 28672) / 8
    assert fp8["scoring"].peak_by_kind["FP8 weights"] == pytest.approx(2 * weights, rel=0.01)
    added = fp8["scoring"].peak_bytes - bf16["scoring"].peak_bytes
    assert added == pytest.approx(2 * weights, rel=0.05)
    # All products but those of attention and of the output matrix.
    tokens = 4 * (2048 + 4096)
    flops = fp8["scoring"].matrix_flops["float8_e4m3fn"]
    assert flops == pytest.approx(2 * weights * tokens, rel=0.01)


@pytest.mark.slow  # A minute of one core.
def test_dry_run_of_experts_on_8_ranks(tmp_path):
    found = peaks(
        tmp_path,
        QUARTER_OF_QWEN3_30B_A3B,
        0,
        8,
        Workload(128, 384),
        "parallel.expert_model_parallel_size=8",
        "rollout.prompts_per_step=8",
        "rollout.group_size=2",
        *FULL_RECOMPUTE,
    )
    # 0.85 billion parameters that all ranks have (masters and moments shared by eight) and 0.91
    # billion of a rank's 16 experts per layer: 7.5 and 18 bytes per parameter, 21.1 GiB.
    assert 21 < found["update"] < 25


@pytest.mark.slow
def test_dry_run_of_a_long_context_on_2_ranks(tmp_path):
    settings = ("rollout.prompts_per_step=1", "rollout.group_size=2", *FULL_RECOMPUTE)
    small = LLAMA_70B | {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 2}
    load = Workload(2048, 14336)
    whole = peaks(tmp_path, small, 0, 1, load, *settings)
    split = peaks(tmp_path, small, 0, 2, load, "parallel.context_parallel_size=2", *settings)
    assert split["scoring"] < whole["scoring"]
    assert split["update"] < whole["update"]
