"""The tensors that a model's configuration asks for, and how those of its files differ.

Nothing here needs torch: recipes are checked with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_resrl.weights.files import StoredTensor

FLOATS = ("F64", "F32", "F16", "BF16")
"""safetensors' names of the types that weights may have."""

_EXPERT_PARTS = {
    "qwen3_moe": ("mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
    "mixtral": ("block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"}),
}
"""What files call the block of experts, and the matrices of each."""
_QUANTIZATION = re.compile(
    r"(scales?(_inv|_2)?|qweight|qzeros|g_idx|zero_point|zeros|absmax|SCB|"
    r"quant_map|nested_absmax|nested_quant_map|weight_format|quant_state\..+)$"
)


def expected_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that files of the model hold, as transformers saves them.

    Args:
        config: config.json of a supported family, or a configuration's `to_dict()`.

    Raises:
        KeyError: A size is not in it.
    """
    family, hidden = config["model_type"], config["hidden_size"]
    embedding = (config["vocab_size"], hidden)
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings", False):
        tensors["lm_head.weight"] = embedding
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        tensors[f"{layer}.input_layernorm.weight"] = (hidden,)
        tensors[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        for name, shape in _attention(config):
            tensors[f"{layer}.self_attn.{name}"] = shape
        sparse = family in _EXPERT_PARTS and _is_sparse(config, number)
        for name, shape in _experts(config) if sparse else _dense(config):
            tensors[f"{layer}.{name}"] = shape
    return tensors


def head_size(config: Mapping[str, Any]) -> int:
    """Size of one attention head; Qwen3's is 128 where config.json does not say it."""
    default = 128 if config["model_type"] == "qwen3" else 0
    size = config.get("head_dim", default)
    return size or config["hidden_size"] // config["num_attention_heads"]


def _attention(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    family, hidden, size = config["model_type"], config["hidden_size"], head_size(config)
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads") if family == "llama" else None
    groups = groups or (heads if family == "llama" else config["num_key_value_heads"])
    for part, rows in (("q", heads * size), ("k", groups * size), ("v", groups * size)):
        yield f"{part}_proj.weight", (rows, hidden)
        if family == "qwen2":
            yield f"{part}_proj.bias", (rows,)
    yield "o_proj.weight", (hidden, heads * size)
    if family in ("qwen3", "qwen3_moe"):
        yield "q_norm.weight", (size,)
        yield "k_norm.weight", (size,)


def _dense(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    yield "mlp.gate_proj.weight", (inner, hidden)
    yield "mlp.up_proj.weight", (inner, hidden)
    yield "mlp.down_proj.weight", (hidden, inner)


def _experts(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    block, names = _EXPERT_PARTS[config["model_type"]]
    hidden = config["hidden_size"]
    inner = config["moe_intermediate_size" if block == "mlp" else "intermediate_size"]
    count = config["num_experts"] if "num_experts" in config else config["num_local_experts"]
    yield f"{block}.gate.weight", (count, hidden)
    for number in range(count):
        for part, name in names.items():
            shape = (hidden, inner) if part == "down" else (inner, hidden)
            yield f"{block}.experts.{number}.{name}.weight", shape


def _is_sparse(config: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer has experts; Mixtral has no dense one."""
    dense = config.get("mlp_only_layers") or ()
    return layer not in dense and not (layer + 1) % config.get("decoder_sparse_step", 1)


@dataclass(frozen=True)
class Comparison:
    """What differs between a model's files and its configuration."""

    wrong: tuple[str, ...]
    """What makes it unusable, each in words that name the tensor."""
    unexpected: tuple[str, ...]
    """Names of tensors that the model does not have, in the order of the files."""
    remedy: str
    """For what is wrong."""


def compare(config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> Comparison:
    """Compares the headers of a model's files with its configuration.

    Args:
        config: See `expected_tensors`.
        stored: By name, as `stored_tensors` reads them.

    Raises:
        KeyError: A size is not in `config`.
    """
    expected = expected_tensors(config)
    wrong, quantized = [], []
    for name, shape in expected.items():
        found = stored.get(name)
        if found is None:
            wrong.append(_missing(name, config))
        elif found.dtype not in FLOATS:
            quantized.append(f"{name} is {found.dtype}")
        elif found.shape != shape:
            wrong.append(f"{name} is {found.shape} instead of {shape}")
    unexpected = tuple(name for name in stored if name not in expected)
    for name in unexpected:
        if _QUANTIZATION.search(name):
            quantized.append(f"{name} is part of a quantization")
    remedy = "fetch the model again, or correct config.json"
    if quantized:
        remedy = "use the model without quantization: in bfloat16, float16 or float32"
    return Comparison((*quantized, *wrong), unexpected, remedy)


def _missing(name: str, config: Mapping[str, Any]) -> str:
    if name != "lm_head.weight":
        return f"{name} is missing"
    said = "is false" if "tie_word_embeddings" in config else "is not there, which means false"
    return (
        f"{name} is missing, and tie_word_embeddings {said} in config.json (true would use the "
        "embedding for it)"
    )


def listed(found: tuple[str, ...] | list[str], shown: int = 3) -> str:
    """The first few, and how many more there are."""
    more = f"; and {len(found) - shown} more" if len(found) > shown else ""
    return "; ".join(found[:shown]) + more
