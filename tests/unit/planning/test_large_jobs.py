"""Dry runs of large jobs: peaks, waits, and traffic by formula."""

import functools
import json
from pathlib import Path

import pytest
from dry_runs import ENGINE, engine_on_path
from te_on_cpu.suite import needs_engine
from unit.planning import test_waits as waits

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
QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
CONFIGS = {
    "llama_70b": LLAMA_70B,
    "experts": QUARTER_OF_QWEN3_30B_A3B,
    "qwen_4b": QWEN3_4B,
    "long": LLAMA_70B
    | {
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_hidden_layers": 2,
        "max_position_embeddings": 16384,
    },
}
LOADS = {
    "llama_70b": Workload(2048, 4096),
    "experts": Workload(128, 384),
    "qwen_4b": Workload(128, 384),
    "long": Workload(2048, 14336),
}
PER_STEP = {phase: sum(waits.PER_STEP[phase].values()) for phase in ("scoring", "update")}
"""Waits, as reviewed; those of the subspace's solver and of a checkpoint grow with the sizes."""
FULL_RECOMPUTE = (
    "model.recompute_granularity=full",
    "model.recompute_method=uniform",
    "model.recompute_num_layers=1",
)


@functools.cache
def phases(
    root: Path, name: str, rank: int, world: int, *settings: str, layers: Layers = "local"
) -> dict[str, PhaseRecord]:
    """Of one rank, by name."""
    load = LOADS[name]
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    own = (
        *(f"model.path={folder}", "rollout.engine=vllm", "algorithm.micro_batch_size=1"),
        # Two responses: one is correct, and every replica has one group.
        *("rollout.group_size=2", "algorithm.updates_per_step=1", "algorithm.single_pass=never"),
        *(f"data.max_prompt_length={load.prompt_tokens}",),
        *(f"rollout.max_response_length={load.response_tokens}",),
    )
    recipe = load_recipe(None, [f"--{setting}" for setting in (*own, *settings)])
    record = dry_run(recipe, rank, world, load, machine=Machine(layers))
    return {phase.name: phase for phase in record.phases}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def of_70b(root: Path, *settings: str, layers: Layers = "local") -> dict[str, PhaseRecord]:
    return phases(
        *(root, "llama_70b", 455, 512),
        "parallel.tensor_model_parallel_size=8",
        "parallel.sequence_parallel=true",
        "parallel.pipeline_model_parallel_size=8",
        "rollout.prompts_per_step=8",
        *settings,
        layers=layers,
    )


def of_experts(root: Path) -> dict[str, PhaseRecord]:
    return phases(
        *(root, "experts", 0, 8),
        "parallel.expert_model_parallel_size=8",
        "rollout.prompts_per_step=8",
        *FULL_RECOMPUTE,
    )


def of_4b(root: Path) -> dict[str, PhaseRecord]:
    return phases(root, "qwen_4b", 0, 8, "rollout.prompts_per_step=8")


def of_long_context(root: Path, context: int) -> dict[str, PhaseRecord]:
    return phases(
        *(root, "long", 0, context, "rollout.prompts_per_step=1"),
        *(f"parallel.context_parallel_size={context}", *FULL_RECOMPUTE),
    )


def sent(phase: PhaseRecord, group: str, collective: str) -> tuple[int, int]:
    """Calls and bytes."""
    found = [t for t in phase.traffic if (t.group, t.collective) == (group, collective)]
    return sum(t.calls for t in found), sum(t.bytes for t in found)


def too_many_waits(found: dict[str, PhaseRecord], *, experts: int = 0) -> dict[str, int]:
    """Phases of a step of one group that wait more often than has been reviewed.

    Args:
        found: Of one rank.
        experts: Layers of experts x micro-batches; they are recomputed in the update.
    """
    counts = {name: sum(wait.count for wait in found[name].waits) for name in PER_STEP}
    dispatched = waits.EXPERTS_PER_LAYER * experts
    limits = {"scoring": dispatched, "update": 2 * dispatched}
    return {n: count for n, count in counts.items() if count > PER_STEP[n] + limits[n]}


def test_dry_run_of_70b_on_512_ranks(root):
    found = of_70b(root)
    # bf16 weights, fp32 gradients, and an eighth of masters and moments: 8.4 GiB; on top in the
    # update one micro-batch of ten layers and the logits.
    assert 8.4 < found["scoring"].peak_bytes / GIB < 9.5
    assert 11 < found["update"].peak_bytes / GIB < 12.5
    assert not too_many_waits(found)
    # Two micro-batches of [6144, 1, 8192] in bf16, of which seven eighths are elsewhere: a
    # reduction behind attention and MLP of ten layers, and none at the output.
    micro_batch = 6143 // 8 * 8 + 8
    calls, sent_bytes = sent(found["scoring"], "tensor", "reduce_scatter")
    assert calls == 2 * 2 * 10
    assert sent_bytes == pytest.approx(calls * micro_batch * 8192 * 2 * 7 / 8, rel=0.001)
    # Backward, its slice of a micro-batch goes to the stage before.
    assert sent(found["update"], "pipeline", "send") == (2, 2 * micro_batch // 8 * 8192 * 2)


@pytest.mark.slow  # 150 s of one core.
def test_dry_run_of_experts_on_8_ranks(root):
    found = of_experts(root)
    # 0.85 billion parameters that all ranks have (masters and moments shared by eight) and 0.91
    # billion of a rank's 16 experts per layer: 7.5 and 18 bytes per parameter, 21.1 GiB.
    assert 21 < found["update"].peak_bytes / GIB < 25
    # Two micro-batches and twelve layers: tokens go to their experts and come back.
    calls, _ = sent(found["scoring"], "expert", "all_to_all")
    assert calls >= 2 * 12 * 2
    assert not too_many_waits(found, experts=12 * 2)


def test_dry_run_of_4b_on_8_ranks(root):
    found = of_4b(root)
    # 4.02 billion parameters: bf16 weights, fp32 gradients, an eighth of 12 bytes.
    assert 7.5 * 4.02e9 < found["scoring"].start_bytes < 7.6 * 4.03e9
    assert not too_many_waits(found)
    # Gradients are reduced in fp32, weights gathered in bf16.
    _, gradients = sent(found["update"], "data", "reduce_scatter")
    _, weights = sent(found["update"], "data", "all_gather")
    assert gradients == pytest.approx(4 * 4.02e9 * 7 / 8, rel=0.01)
    assert weights == pytest.approx(2 * 4.02e9 * 7 / 8, rel=0.01)


def test_dry_run_of_a_long_context_on_2_ranks(root):
    whole, split = of_long_context(root, 1), of_long_context(root, 2)
    for name in ("scoring", "update"):
        assert split[name].peak_bytes < whole[name].peak_bytes
    assert not too_many_waits(split)
    # Keys and values, gathered or sent around, in both layers of both micro-batches.
    assert any(traffic.group == "context" for traffic in split["scoring"].traffic)


@pytest.mark.slow  # 45 s of one core.
@needs_engine
def test_dry_run_of_70b_on_engine_layers(root):
    with engine_on_path():
        bf16 = of_70b(root, layers=ENGINE)
        fp8 = of_70b(root, "precision.fp8=hybrid", layers=ENGINE)
    # As on local layers.
    assert 8.4 < bf16["scoring"].peak_bytes / GIB < 9.5
    assert 11 < bf16["update"].peak_bytes / GIB < 12.5
    # Two FP8 copies of the weights of ten layers, for the products forward and backward.
    weights = 10 * (8192 * (2 * 8192 + 2 * 1024) + 3 * 8192 * 28672) / 8
    assert fp8["scoring"].peak_by_kind["FP8 weights"] == pytest.approx(2 * weights, rel=0.01)
    added = fp8["scoring"].peak_bytes - bf16["scoring"].peak_bytes
    assert added == pytest.approx(2 * weights, rel=0.05)
    # All products but those of attention and of the output matrix.
    tokens = 2 * (2048 + 4096)
    flops = fp8["scoring"].matrix_flops["float8_e4m3fn"]
    assert flops == pytest.approx(2 * weights * tokens, rel=0.01)


@pytest.mark.slow  # 45 s of one core.
@needs_engine
def test_dry_run_of_70b_shares_prompts_on_engine_layers(root):
    with engine_on_path():
        copies, shared = (
            of_70b(
                root,
                "algorithm.micro_batch_size=2",
                f"algorithm.shared_prompts={asked}",
                layers=ENGINE,
            )
            for asked in ("never", "auto")
        )
    # A micro-batch has a prompt of 2048 tokens and two responses of 4096 instead of two of each.
    held = [each["update"].peak_by_kind["activations"] for each in (copies, shared)]
    assert held[1] / held[0] == pytest.approx(10 / 12, rel=0.05)
    for name in ("scoring", "update"):
        sends = [sent(each[name], "tensor", "reduce_scatter") for each in (copies, shared)]
        assert sends[1][0] == sends[0][0]
        assert sends[1][1] / sends[0][1] == pytest.approx(10 / 12, rel=0.01)
    assert not too_many_waits(shared)
