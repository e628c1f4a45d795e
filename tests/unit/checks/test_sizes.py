"""Sizes predicted from config.json, against transformers' own models."""

from __future__ import annotations

import json

import pytest
import tiny_families
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from megatron_resrl.checks.facts import gather_facts
from megatron_resrl.checks.sizes import disk_needed, plan
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.schema import (
    CheckpointConfig,
    ParallelConfig,
    PrecisionConfig,
    Recipe,
)
from megatron_resrl.policy.families import find_family
from megatron_resrl.policy.sizes import count_parameters, sizes_of

PUBLISHED = {
    "Llama-3.1-8B": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    ),
    "Qwen2.5-0.5B": Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "Qwen3-4B": Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "Qwen3-30B-A3B": Qwen3MoeConfig(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        tie_word_embeddings=False,
    ),
    "Mixtral-8x7B": MixtralConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_local_experts=8,
        tie_word_embeddings=False,
    ),
}
MODELS = PUBLISHED | tiny_families.family_configs()


def as_json(config: PretrainedConfig) -> dict:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return config.to_dict() | {
        "architectures": [type(model).__name__],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


@pytest.mark.parametrize("name", MODELS)
def test_sizes_count_the_parameters_of_transformers(name):
    hf_config = as_json(MODELS[name])
    assert count_parameters(find_family(hf_config)).total == hf_config["parameters"]


def layout(**parallel: object) -> tuple[ParallelConfig, PrecisionConfig]:
    return ParallelConfig(**parallel), PrecisionConfig("bf16")


def test_sizes_of_one_rank_are_eighteen_bytes_per_parameter():
    hf_config = as_json(PUBLISHED["Llama-3.1-8B"])
    count = hf_config["parameters"]
    sizes = sizes_of(*layout(), 1, hf_config)
    assert (sizes.weights, sizes.gradients, sizes.optimizer) == (2 * count, 4 * count, 12 * count)
    assert (sizes.checkpoint, sizes.export) == (14 * count, 2 * count)


def test_sizes_share_layers_matrices_and_optimizer():
    hf_config = as_json(PUBLISHED["Llama-3.1-8B"])
    count = count_parameters(find_family(hf_config))
    sizes = sizes_of(
        *layout(tensor_model_parallel_size=2, pipeline_model_parallel_size=4), 32, hf_config
    )
    own = (count.in_layers // 4 + count.embedding) // 2
    assert sizes.weights == 2 * own
    assert sizes.optimizer == 12 * own // 4
    assert sizes.checkpoint == 14 * count.total


def test_sizes_share_experts_by_their_own_layout():
    hf_config = as_json(PUBLISHED["Qwen3-30B-A3B"])
    count = count_parameters(find_family(hf_config))
    sizes = sizes_of(
        *layout(expert_model_parallel_size=8, use_distributed_optimizer=False), 8, hf_config
    )
    own = count.total - count.experts + count.experts // 8
    assert sizes.weights == 2 * own
    assert sizes.optimizer == 12 * own


def test_sizes_of_the_disk_are_one_checkpoint_more_than_kept(tmp_path):
    hf_config = as_json(tiny_families.family_configs()["llama"])
    settings = Recipe(
        output_dir=str(tmp_path), steps=100, checkpoint=CheckpointConfig(save_every=10, keep_last=2)
    )
    sizes = sizes_of(*layout(), 1, hf_config)
    first, needed = disk_needed(settings, sizes)
    assert (first, needed) == (sizes.checkpoint, 3 * sizes.checkpoint + sizes.export)
    (tmp_path / "checkpoints" / "step_000010").mkdir(parents=True)
    assert disk_needed(settings, sizes)[1] == 2 * sizes.checkpoint + sizes.export


def plan_of(recipe: Recipe, world_size: int) -> list[str]:
    return list(plan(gather_facts(recipe, world_size)[0]))


def test_size_plan_counts_tokens_and_compares_with_a_device(tmp_path):
    text = {
        **as_json(PUBLISHED["Llama-3.1-8B"]),
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
    }
    (tmp_path / "config.json").write_text(json.dumps(text))
    lines = "\n".join(plan_of(load_recipe(None, [f"--model.path={tmp_path}"]), 1))
    assert "70.6 billion parameters" in lines
    assert "each rank: 1.27 TB (more than the 80 GB of an H100)" in lines
    # 12 bytes of masters and moments, and 2 of weights, per parameter.
    assert "host memory: 988 GB for each rank (more than this host has)" in lines
    assert "256 prompts x 4 responses of up to 4096 tokens, 4,194,304 in all" in lines


@pytest.mark.parametrize(
    "given",
    [
        "--output_dir=/tmp/" + "a" * 300,
        "--parallel.pipeline_model_parallel_size=0",
        "--checkpoint.save_every=-3",
        "--model.path=/nowhere",
    ],
)
def test_size_plan_survives_a_wrong_recipe(tmp_path, given):
    text = as_json(tiny_families.family_configs()["llama"])
    (tmp_path / "config.json").write_text(json.dumps(text))
    lines = plan_of(load_recipe(None, [f"--model.path={tmp_path}", given]), 1)
    assert len(lines) in (0, 5)


@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("value", [None, "64", 0, []])
def test_size_plan_survives_a_wrong_config(tmp_path, name, value):
    text = as_json(tiny_families.family_configs()["qwen2"]) | {name: value}
    (tmp_path / "config.json").write_text(json.dumps(text))
    assert len(plan_of(load_recipe(None, [f"--model.path={tmp_path}"]), 1)) in (0, 5)
