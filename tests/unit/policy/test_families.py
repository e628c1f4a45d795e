"""What families say of a model, from config.json as published and from transformers' defaults."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_families as tiny
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, MistralConfig, MixtralConfig

from megatron_resrl.checks.passthrough import FROM_THE_MODEL, FROM_THE_TRAINER
from megatron_resrl.policy.families import FAMILIES, Family, family_of, find_family

DENSE = [name for name, config in tiny.family_configs().items() if not family_of(config).experts]
GEMMA_3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
"""As in google/gemma-3-1b-it, in the spelling of its time."""


def family(config: dict[str, Any]) -> Family:
    found = find_family({"num_hidden_layers": 2} | config)
    assert found is not None
    return found


@pytest.mark.parametrize("name", DENSE)
def test_tensors_are_those_of_transformers(name: str) -> None:
    config = tiny.family_configs()[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    theirs = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert family_of(config).tensors() == theirs


@pytest.mark.parametrize("name", tiny.family_configs())
def test_transformer_fields_cannot_be_passed_through(name: str) -> None:
    fields = family_of(tiny.family_configs()[name]).transformer_fields().keys()
    assert fields - {*FROM_THE_MODEL, *FROM_THE_TRAINER} <= {"moe_router_dtype"}


def test_find_family_goes_by_architecture_then_by_model_type() -> None:
    for each in FAMILIES:
        assert type(find_family({"architectures": [each.architecture]})) is each
        assert type(find_family({"model_type": each.model_type})) is each
    classifier = {"architectures": ["Qwen3ForSequenceClassification"], "model_type": "qwen3"}
    assert find_family(classifier) is None
    assert find_family({}) is None


_QWEN = {"use_sliding_window": True, "max_window_layers": 1}
WINDOWED: dict[str, tuple[dict[str, Any], list[bool]]] = {
    "mistral": ({"architectures": ["MistralForCausalLM"]}, [True, True]),
    "mixtral": ({"architectures": ["MixtralForCausalLM"]}, [True, True]),
    "qwen2": ({"architectures": ["Qwen2ForCausalLM"], **_QWEN}, [False, True]),
    "qwen3": ({"architectures": ["Qwen3ForCausalLM"], **_QWEN}, [False, True]),
    "qwen3_listed": (
        {
            **{"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True},
            "layer_types": ["sliding_attention", "full_attention"],
        },
        [True, False],
    ),
    "qwen3_moe": (
        {"architectures": ["Qwen3MoeForCausalLM"], "use_sliding_window": True},
        [True, True],
    ),
    "gemma3": (
        {"architectures": ["Gemma3ForCausalLM"], "sliding_window_pattern": 2},
        [True, False],
    ),
}
UNWINDOWED: dict[str, dict[str, Any]] = {
    "no window": {"architectures": ["MistralForCausalLM"], "sliding_window": None},
    "not used": {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
    "above the last layer": {
        **{"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True},
        "max_window_layers": 2,
    },
    "in no layer": {
        **{"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True},
        **{"max_window_layers": 0, "layer_types": ["full_attention"] * 2},
    },
}


@pytest.mark.parametrize("case", WINDOWED)
def test_window_is_in_the_layers_that_config_json_names(case: str) -> None:
    config, layers = WINDOWED[case]
    found = family({"sliding_window": 31} | config)
    assert (found.window, found.windowed_layers) == (31, layers)


@pytest.mark.parametrize("case", UNWINDOWED)
def test_window_that_no_layer_uses_is_none(case: str) -> None:
    found = family({"sliding_window": 31} | UNWINDOWED[case])
    assert (found.window, found.windowed_layers) == (None, [False, False])


def test_window_missing_in_config_json_is_that_of_transformers() -> None:
    mistral = family({"architectures": ["MistralForCausalLM"]})
    mixtral = family({"architectures": ["MixtralForCausalLM"]})
    assert mistral.window == MistralConfig().sliding_window == 4096
    assert mixtral.window == MixtralConfig().sliding_window is None


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 8.0}])
def test_gemma3_reads_the_older_spelling_as_transformers(scaling: dict[str, Any] | None) -> None:
    published = GEMMA_3_1B | {"rope_scaling": scaling}
    ours, theirs = find_family(published), family_of(Gemma3TextConfig(**published))
    assert ours is not None
    assert ours.rotary == theirs.rotary
    assert ours.rotary["full_attention"]["rope_theta"] == 1000000
    assert ours.rotary["sliding_attention"] == {"rope_theta": 10000, "rope_type": "default"}
    assert ours.windowed_layers == theirs.windowed_layers == ([True] * 5 + [False]) * 4 + [True] * 2
    assert ours.transformer_fields() == theirs.transformer_fields()
    assert ours.tied
    assert ours.tensors() == theirs.tensors()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"attn_logit_softcapping": 50.0}, "its attn_logit_softcapping is 50.0"),
        ({"final_logit_softcapping": 30.0}, "its final_logit_softcapping is 30.0"),
        ({"use_bidirectional_attention": True}, "its use_bidirectional_attention is true"),
        ({"hidden_activation": "gelu"}, "its hidden_activation is 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "its rope_type is 'yarn'"),
    ],
)
def test_gemma3_names_what_is_not_supported(config: dict[str, Any], said: str) -> None:
    assert [found.problem for found in family(GEMMA_3_1B | config).problems()] == [said]
    assert list(family(GEMMA_3_1B).problems()) == []
