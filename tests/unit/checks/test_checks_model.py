"""Models and lengths that cannot be used are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda model: shutil.rmtree(model), "there is no such directory"),
        (lambda model: (model / "config.json").unlink(), "it has no config.json"),
        (lambda model: (model / "config.json").write_text("{"), "not valid JSON"),
        (lambda model: (model / "model.safetensors").unlink(), "no *.safetensors file"),
        (
            lambda model: (model / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'
            ),
            "it lacks model-2.safetensors",
        ),
        (
            lambda model: (model / "model.safetensors.index.json").write_text("[]"),
            "index.json cannot be read",
        ),
        (lambda model: (model / "tokenizer.json").unlink(), "none of tokenizer.json"),
        (lambda model: (model / "tokenizer.json").write_text("{"), "not valid JSON"),
    ],
)
def test_model_path_of_an_incomplete_directory_is_refused(
    refused, model, broken: Callable[[Path], Any], said
):
    broken(model)
    problem = refused()
    assert (problem.setting, problem.value) == ("model.path", str(model))
    assert said in problem.problem


def test_model_path_that_is_missing_is_refused(refused):
    problem = refused("--model.path=")
    assert (problem.setting, problem.problem) == ("model.path", "no model is given")
    assert "config.json" in problem.fix


@pytest.mark.parametrize(
    ("config", "said", "right"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel", "LlamaForCausalLM, Qwen2"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type is 'longrope'", "llama3, yarn"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5", "without it"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "dynamic"}},
            "rope_type is 'dynamic'",
            "llama3",
        ),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'", "only silu"),
        ({"layer_types": ["sliding_attention"]}, "sliding-window", "without it"),
        ({"layer_types": ["chunked_attention"]}, "chunked_attention", "without it"),
        ({"attention_bias": True}, "attention_bias", "without it"),
        ({"mlp_bias": True}, "mlp_bias", "without it"),
        ({"quantization_config": {"bits": 4}}, "quantized", "unquantized"),
        ({"pad_token_id": 64}, "out-of-vocabulary pad token: its pad_token_id is 64", "0 to 63"),
        ({"eos_token_id": -1}, "out-of-vocabulary end-of-sequence token", "0 to 63"),
        ({"eos_token_id": [1, 99]}, "out-of-vocabulary end-of-sequence token", "0 to 63"),
    ],
)
def test_models_that_are_not_supported_are_refused(refused, model, config, said, right):
    problem = refused(**config)
    assert (problem.setting, problem.value) == ("model.path", str(model))
    assert said in problem.problem
    assert right in problem.fix


@pytest.fixture
def unlike_its_weights(model: Path) -> None:
    """The architecture changes, and weights with it: what is in the file does not matter here."""
    (model / "model.safetensors").unlink()
    (model / ".metadata").write_text("")
    (model / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')


@pytest.mark.usefixtures("unlike_its_weights")
@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}},
        {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "linear"}},
        {"rope_parameters": None, "rope_theta": 1e4},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
        {"pad_token_id": None},
        {"pad_token_id": -1},
        {"architectures": ["Qwen2ForCausalLM"], "attention_bias": True},
        {"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention"] * 2},
    ],
)
def test_check_model_passes_supported_variants(check, config):
    assert check(**config) == []


def test_response_budget_beyond_the_positions_is_refused(refused):
    problem = refused("--rollout.max_response_length=120")
    assert (problem.setting, problem.value) == ("rollout.max_response_length", 120)
    assert "response budget larger than the model's positions" in problem.problem
    assert "136 tokens" in problem.problem
    assert "at most 128" in problem.fix


def test_stop_tokens_outside_the_vocabulary_are_refused(refused):
    problem = refused("--rollout.stop_token_ids=[1, 64]")
    assert (problem.setting, problem.value) == ("rollout.stop_token_ids", (1, 64))
    assert "0 to 63" in problem.fix


@pytest.mark.parametrize(
    ("overrides", "setting", "right"),
    [
        (("full", "null", "1"), "model.recompute_method", "uniform"),
        (("full", "block", "null"), "model.recompute_num_layers", "recompute_num_layers 1"),
        (("selective", "null", "1"), "model.recompute_num_layers", "leave it out"),
        (("null", "block", "null"), "model.recompute_method", "leave it out"),
    ],
)
def test_check_recomputation_refuses_inconsistent_settings(
    refused, overrides: tuple[str, str, str], setting, right
):
    granularity, method, layers = overrides
    problem = refused(
        f"--model.recompute_granularity={granularity}",
        f"--model.recompute_method={method}",
        f"--model.recompute_num_layers={layers}",
    )
    assert problem.setting == setting
    assert right in problem.fix


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"eos_token_id": [1, 64]}', "has eos_token_id [1, 64], which is no token"),
        ('{"eos_token_id": "</s>"}', "has eos_token_id </s>, which is no token"),
        ("{", "generation_config.json cannot be read"),
    ],
)
def test_check_generation_config_refuses_unknown_eos_tokens(refused, model, content, said):
    (model / "generation_config.json").write_text(content)
    assert said in refused().problem
