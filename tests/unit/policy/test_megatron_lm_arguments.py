"""Which models of Megatron-LM are of a supported family, by their arguments."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_resrl.policy.families import find_family
from megatron_resrl.policy.families.megatron_lm import argument_problems, config_from_arguments

DENSE = {
    "num_layers": 4,
    "hidden_size": 48,
    "ffn_hidden_size": 80,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "swiglu": True,
    "add_bias_linear": False,
}
EXPERTS = {"num_experts": 4, "moe_ffn_hidden_size": 32, "moe_router_topk": 2}


def config(**arguments: Any) -> dict[str, Any]:
    assert list(argument_problems(DENSE | arguments)) == []
    return config_from_arguments(DENSE | arguments, 131, {})


@pytest.mark.parametrize(
    ("arguments", "supported"),
    [
        ({"position_embedding_type": "learned_absolute"}, "'rope'"),
        ({"position_embedding_type": "mrope"}, "'rope'"),
        ({"position_embedding_type": "yarn"}, "'rope'"),
        ({"rotary_percent": 0.5}, "1.0"),
        ({"rotary_interleaved": True}, "without it"),
        ({"rotary_seq_len_interpolation_factor": 4}, "None or 1"),
        ({"no_rope_freq": [0, 0, 0, 1]}, "without it"),
        ({"normalization": "LayerNorm"}, "'RMSNorm'"),
        ({"layernorm_zero_centered_gamma": True}, "without it"),
        ({"apply_layernorm_1p": True}, "without it"),
        ({"swiglu": False}, "True"),
        ({"squared_relu": True}, "without it"),
        ({"quick_geglu": True}, "without it"),
        ({"add_bias_linear": True}, "False"),
        ({"multi_latent_attention": True}, "without it"),
        ({"mtp_num_layers": 1}, "without it"),
        ({"is_hybrid_model": True}, "without it"),
        ({"hybrid_layer_pattern": "M*M*"}, "without it"),
        ({"heterogeneous_layers_config_path": "layers.json"}, "without it"),
        ({"spec": ["my_specs", "layer"]}, "without it"),
        ({"softmax_type": "learnable"}, "'vanilla'"),
        ({"window_size": (-1, 0)}, "(tokens before a token, 0)"),
        ({"num_layers": None}, "a number"),
        (EXPERTS | {"moe_router_score_function": "sigmoid"}, "'softmax'"),
        (EXPERTS | {"moe_shared_expert_intermediate_size": 64}, "without it"),
        (EXPERTS | {"moe_router_load_balancing_type": "sinkhorn"}, "softmax"),
        (EXPERTS | {"moe_router_topk_scaling_factor": 2.5}, "None or 1.0"),
    ],
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) else "",
)
def test_arguments_of_other_models_are_named(arguments: dict[str, Any], supported: str) -> None:
    name, value = next(reversed(arguments.items()))
    (found,) = argument_problems(DENSE | arguments)
    assert found.problem == f"its argument {name} is {value!r}"
    assert supported in found.fix


def test_rope_scaling_factor_counts_with_scaling_only() -> None:
    assert config(rope_scaling_factor=32.0)["rope_scaling"] is None
    assert config(use_rope_scaling=True, rope_scaling_factor=8)["rope_scaling"]["factor"] == 8.0
    (found,) = argument_problems(DENSE | {"use_rope_scaling": True, "rope_scaling_factor": 32.0})
    assert found.problem == "its argument rope_scaling_factor is 32.0"


def test_arguments_without_a_family_are_named_together() -> None:
    (found,) = argument_problems(DENSE | {"qk_layernorm": True, "add_qkv_bias": True})
    assert found.problem == (
        "no supported family has its arguments qk_layernorm True, add_qkv_bias True together"
    )
    (found,) = argument_problems(DENSE | EXPERTS | {"moe_layer_freq": 2})
    assert "num_experts 4, moe_layer_freq 2 together" in found.problem


def test_config_takes_defaults_of_megatron_lm_and_older_names() -> None:
    arguments = {k: v for k, v in DENSE.items() if k not in ("add_bias_linear",)}
    arguments |= {"position_embedding_type": "learned_absolute", "disable_bias_linear": True}
    arguments |= {"use_rotary_position_embeddings": True, "norm_epsilon": 1e-6}
    # Unused without grouped queries.
    arguments |= {"num_query_groups": 1}
    assert list(argument_problems(arguments)) == []
    found = config_from_arguments(arguments, 131, {"eos_token_id": 7})
    assert found["architectures"] == ["LlamaForCausalLM"]
    assert (found["num_key_value_heads"], found["head_dim"], found["rope_theta"]) == (4, 12, 1e4)
    assert (found["rms_norm_eps"], found["tie_word_embeddings"]) == (1e-6, True)
    assert (found["bos_token_id"], found["eos_token_id"]) == (None, 7)


@pytest.mark.parametrize(
    ("skipped", "windowed"), [(None, [1, 1, 1, 1]), (2, [1, 0, 1, 0]), ([0, 1, 1, 0], [0, 1, 1, 0])]
)
def test_windows_of_arguments_are_those_of_layers(
    skipped: int | list[int] | None, windowed: list[int]
) -> None:
    settings = {"window_size": (4, 0), "window_attn_skip_freq": skipped}
    family = find_family(config(add_qkv_bias=True, **settings))
    assert family.architecture == "Qwen2ForCausalLM"
    assert family.windowed_layers == list(map(bool, windowed))
    assert family.transformer_fields()["window_size"] == (4, 0)
    if all(windowed):
        assert config(**settings)["architectures"] == ["MistralForCausalLM"]
        assert find_family(config(**settings)).window == 5


@pytest.mark.parametrize(("frequency", "dense"), [(1, []), (2, [1, 3]), ([0, 1, 1, 0], [0, 3])])
def test_sparse_layers_of_arguments_are_those_of_qwen3(
    frequency: int | list[int], dense: list[int]
) -> None:
    found = config(**EXPERTS, qk_layernorm=True, moe_layer_freq=frequency)
    assert found["mlp_only_layers"] == dense
    assert found["norm_topk_prob"] is True
    assert find_family(found).sparse_layers == [number not in dense for number in range(4)]
    before = config(**EXPERTS, qk_layernorm=True, moe_router_pre_softmax=True)
    assert before["norm_topk_prob"] is False


def test_experts_without_norms_of_queries_are_mixtral() -> None:
    found = config(**EXPERTS)
    assert found["architectures"] == ["MixtralForCausalLM"]
    assert (found["intermediate_size"], found["num_local_experts"]) == (32, 4)
