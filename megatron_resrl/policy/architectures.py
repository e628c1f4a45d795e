"""What config.json says of a model, in any of its spellings."""

from __future__ import annotations

from typing import Any

EXPERT_ARCHITECTURES = ("Qwen3MoeForCausalLM", "MixtralForCausalLM")


def experts_of(hf_config: dict[str, Any]) -> int | None:
    """Experts of each sparse layer, as either spelling of config.json says; None: a dense model."""
    architecture = (hf_config.get("architectures") or [""])[0]
    if architecture not in EXPERT_ARCHITECTURES:
        return None
    return hf_config.get("num_experts") or hf_config.get("num_local_experts")


SUPPORTED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
)


SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


_DEFAULT_WINDOWS = {
    "MistralForCausalLM": 4096,
    "MixtralForCausalLM": None,
    "Qwen2ForCausalLM": 4096,
    "Qwen3ForCausalLM": 4096,
    "Qwen3MoeForCausalLM": 4096,
}
"""Families with a `sliding_window`, and what transformers takes where config.json has none."""


_DEFAULT_MAX_WINDOW_LAYERS = 28
"""Of Qwen2 and Qwen3: layers before this one have no window."""


def rope_settings(hf_config: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding's type and fields, as the newer or the older config.json spells them."""
    settings = dict(hf_config.get("rope_scaling") or {})
    settings |= hf_config.get("rope_parameters") or {}
    settings["rope_type"] = settings.get("rope_type") or settings.get("type") or "default"
    return settings


def attention_window(hf_config: dict[str, Any]) -> int | None:
    """Tokens that the layers with the shortest view attend to; None: all, in every layer."""
    architecture = (hf_config.get("architectures") or [""])[0]
    if architecture not in _DEFAULT_WINDOWS:
        return None
    window = hf_config.get("sliding_window", _DEFAULT_WINDOWS[architecture])
    if not architecture.startswith("Qwen"):
        return window
    if not hf_config.get("use_sliding_window"):
        return None
    if kinds := hf_config.get("layer_types"):
        return window if "sliding_attention" in kinds else None
    if architecture == "Qwen3MoeForCausalLM":
        return window
    first = hf_config.get("max_window_layers", _DEFAULT_MAX_WINDOW_LAYERS)
    return window if first < hf_config.get("num_hidden_layers", 0) else None
