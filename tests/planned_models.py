"""config.json of models whose weights are not here, and hand-made records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_resrl.planning.records import PhaseRecord, Traffic, Wait
from megatron_resrl.policy.families import find_family
from megatron_resrl.policy.model_shape import ModelShape


def llama_config(**sizes: Any) -> dict[str, Any]:
    """Of a Llama 3."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "rope_theta": 500000.0,
        **sizes,
    }


LLAMA_8B = llama_config(
    hidden_size=4096, num_hidden_layers=32, intermediate_size=14336, num_attention_heads=32
)
LLAMA_70B = llama_config(
    hidden_size=8192, num_hidden_layers=80, intermediate_size=28672, num_attention_heads=64
)
QWEN_30B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def shape_of(config: dict[str, Any]) -> ModelShape:
    family = find_family(config)
    assert family is not None
    return ModelShape.of(family)


def phase_record(
    name: str = "update",
    *,
    start: int = 0,
    peak: int = 0,
    kinds: dict[str, int] | None = None,
    traffic: tuple[Traffic, ...] = (),
    waits: tuple[Wait, ...] = (),
    flops: dict[str, int] | None = None,
    touched: int = 0,
    host_copies: int = 0,
    kernels: int = 0,
) -> PhaseRecord:
    """A record of which only what is given is not 0."""
    return PhaseRecord(
        name=name,
        start_bytes=start,
        peak_bytes=peak,
        peak_by_kind=kinds or {},
        holders=(),
        traffic=traffic,
        waits=waits,
        matrix_flops=flops or {},
        touched_bytes=touched,
        host_copy_bytes=host_copies,
        kernels=kernels,
    )


def write_config(directory: Path, config: dict[str, Any]) -> Path:
    """A model's directory with config.json and nothing else."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory
