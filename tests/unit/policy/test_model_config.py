"""Hugging Face configurations become megatron-core's, or are refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_families as tiny
import torch
from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function
from transformers import LlamaConfig, MixtralConfig, PretrainedConfig, Qwen3MoeConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig
from megatron_resrl.platform.precision import transformer_precision
from megatron_resrl.policy.families import family_of
from megatron_resrl.policy.model_config import (
    padded_vocab_size,
    read_hf_config,
    rotary_inverse_frequencies,
    transformer_config,
)


def test_model_config_scales_llama3_rope_as_transformers() -> None:
    config = tiny.family_configs()["llama"]
    theirs = LlamaRotaryEmbedding(config).inv_freq
    ours = rotary_inverse_frequencies(config)
    plain = 1 / family_of(config).rotary[None]["rope_theta"] ** (torch.arange(0, 12, 2) / 12)
    assert torch.equal(ours, theirs)
    # The tiny model must exercise the scaling: kept, interpolated and divided frequencies.
    ratio = plain / ours
    assert ratio[0] == 1
    assert ratio[-1] == pytest.approx(8)
    assert ((ratio > 1.01) & (ratio < 7.9)).any()


def test_plain_rope_needs_no_frequencies_of_its_own() -> None:
    config = tiny.family_configs()["qwen2"]
    assert rotary_inverse_frequencies(config) is None
    assert family_of(config).rotary[None] == {"rope_theta": 10000.0, "rope_type": "default"}


def test_unknown_rope_type_is_refused_by_name() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ValueError, match=r"'dynamic'.*supported are default, linear, llama3, y"):
        rotary_inverse_frequencies(LlamaConfig(rope_parameters=rope))


def test_model_config_finds_rope_theta_beside_the_scaling(tmp_path: Path) -> None:
    old = {"rope_theta": 500000.0, "rope_scaling": None, "architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(old | {"model_type": "llama"}))
    assert family_of(read_hf_config(str(tmp_path))).rotary[None]["rope_theta"] == 500000.0


def test_model_config_names_a_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"which has no config\.json"):
        read_hf_config(str(tmp_path))


def test_unsupported_architecture_names_the_supported_ones(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="GPT2LMHeadModel; supported are LlamaForCausalLM"):
        read_hf_config(str(tmp_path))


def test_head_size_is_explicit_or_hidden_size_over_heads() -> None:
    sizes = {name: family_of(config).head_size for name, config in tiny.family_configs().items()}
    assert (sizes["qwen3"], sizes["qwen2"]) == (16, 12)
    assert (sizes["mistral"], sizes["mixtral"]) == (16, 12)


@pytest.mark.parametrize(("ranks", "rows"), [(1, 131), (2, 132), (4, 132), (8, 136)])
def test_vocabulary_is_padded_to_a_multiple_of_tensor_parallel(ranks: int, rows: int) -> None:
    assert padded_vocab_size(131, ranks) == rows


@pytest.mark.parametrize(
    ("family", "qkv_bias", "qk_norm"),
    [
        ("llama", False, False),
        ("qwen2", True, False),
        ("qwen3", False, True),
        ("qwen3_moe", False, True),
        ("mistral", False, False),
        ("mixtral", False, False),
    ],
)
def test_families_differ_in_qkv_bias_and_qk_norm(
    family: str, qkv_bias: bool, qk_norm: bool
) -> None:
    hf_config = tiny.family_configs()[family]
    config = transformer_config(hf_config, ModelConfig(), ParallelConfig(), PrecisionConfig("fp32"))
    assert (config.add_qkv_bias, config.qk_layernorm) == (qkv_bias, qk_norm)


ROUTED = {"hidden_size": 64, "num_attention_heads": 4, "num_experts_per_tok": 3}


@pytest.mark.parametrize(
    ("hf_config", "router_class"),
    [
        (Qwen3MoeConfig(**ROUTED, num_experts=8, norm_topk_prob=True), Qwen3MoeTopKRouter),
        (Qwen3MoeConfig(**ROUTED, num_experts=8, norm_topk_prob=False), Qwen3MoeTopKRouter),
        (MixtralConfig(**ROUTED, num_local_experts=8), MixtralTopKRouter),
    ],
    ids=["qwen3_moe_divided", "qwen3_moe", "mixtral"],
)
def test_model_config_routes_as_transformers(
    hf_config: PretrainedConfig, router_class: type[torch.nn.Module]
) -> None:
    config = transformer_config(hf_config, ModelConfig(), ParallelConfig(), PrecisionConfig("bf16"))
    router = router_class(hf_config)
    torch.nn.init.normal_(router.weight, std=0.02)
    tokens = torch.randn(20, hf_config.hidden_size)
    logits, weights, experts = router(tokens)
    ours, chosen = topk_routing_with_score_function(
        logits,
        config.moe_router_topk,
        use_pre_softmax=config.moe_router_pre_softmax,
        score_function=config.moe_router_score_function,
    )
    assert torch.equal(chosen, torch.zeros_like(chosen).scatter(1, experts, True))
    torch.testing.assert_close(ours.gather(1, experts), weights)
    assert config.moe_router_dtype == "fp32"
    assert not config.moe_aux_loss_coeff


@pytest.mark.parametrize(
    ("settings", "sparse"),
    [
        ({}, 1),
        ({"mlp_only_layers": [0, 3]}, [0, 1, 1, 0]),
        ({"decoder_sparse_step": 2}, [0, 1, 0, 1]),
    ],
)
def test_model_config_keeps_dense_layers_of_a_mixture(
    settings: dict[str, Any], sparse: int | list[int]
) -> None:
    hf_config = Qwen3MoeConfig(num_hidden_layers=4, num_experts=4, **settings)
    config = transformer_config(hf_config, ModelConfig(), ParallelConfig(), PrecisionConfig("fp32"))
    assert config.moe_layer_freq == sparse


def test_layers_of_mixtral_have_experts_of_dense_size() -> None:
    hf_config = tiny.family_configs()["mixtral"]
    config = transformer_config(hf_config, ModelConfig(), ParallelConfig(), PrecisionConfig("fp32"))
    assert (config.moe_layer_freq, config.num_moe_experts) == (1, 4)
    assert config.moe_ffn_hidden_size == hf_config.intermediate_size


def test_fields_of_megatron_pass_through() -> None:
    model = ModelConfig(megatron={"init_method_std": 0.5})
    config = transformer_config(
        tiny.family_configs()["llama"], model, ParallelConfig(), PrecisionConfig("bf16")
    )
    assert config.init_method_std == 0.5
    assert config.params_dtype is torch.bfloat16


@pytest.mark.setting("model.attention_dropout", "model.hidden_dropout")
@pytest.mark.setting("model.recompute_method", "model.recompute_num_layers")
@pytest.mark.setting("precision.params_dtype")
def test_model_config_has_the_settings_of_the_model() -> None:
    model = ModelConfig(
        attention_dropout=0.1,
        hidden_dropout=0.2,
        recompute_granularity="full",
        recompute_method="block",
        recompute_num_layers=3,
    )
    config = transformer_config(
        tiny.family_configs()["llama"], model, ParallelConfig(), PrecisionConfig("fp32")
    )
    assert (config.attention_dropout, config.hidden_dropout) == (0.1, 0.2)
    assert (config.recompute_method, config.recompute_num_layers) == ("block", 3)
    assert config.params_dtype is torch.float32


@pytest.mark.setting("precision.fp8", "precision.fp8_recipe")
@pytest.mark.setting("precision.num_layers_at_start_in_bf16")
@pytest.mark.setting("precision.num_layers_at_end_in_bf16")
def test_model_config_has_the_settings_of_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron.core.fp8_utils.HAVE_TE", True)
    fields = transformer_precision(PrecisionConfig(fp8="e4m3", fp8_recipe="delayed"))
    assert (fields["fp8"], fields["fp8_recipe"]) == ("e4m3", "delayed")
    assert not fields["first_last_layers_bf16"]
    for start, end in ((1, 0), (0, 2)):
        precision = PrecisionConfig(
            fp8="hybrid", num_layers_at_start_in_bf16=start, num_layers_at_end_in_bf16=end
        )
        config = transformer_config(
            tiny.family_configs()["llama"], ModelConfig(), ParallelConfig(), precision
        )
        assert config.first_last_layers_bf16
        kept = (config.num_layers_at_start_in_bf16, config.num_layers_at_end_in_bf16)
        assert kept == (start, end)
