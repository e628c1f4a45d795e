"""Hugging Face configuration -> megatron-core `TransformerConfig`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_resrl.config.checks_model import SUPPORTED_ARCHITECTURES
from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig
from megatron_resrl.errors import InputError
from megatron_resrl.platform.precision import transformer_precision
from megatron_resrl.policy.experts import expert_fields


def read_hf_config(path: str) -> PretrainedConfig:
    """Reads `config.json` of a Hugging Face model directory.

    Raises:
        InputError: There is no config.json, or its architecture is not supported.
    """
    if not (Path(path) / "config.json").is_file():
        raise InputError(
            f"model.path is {path!r}, which has no config.json; give the directory of a "
            "Hugging Face model"
        )
    hf_config = AutoConfig.from_pretrained(path, local_files_only=True)
    found = (hf_config.architectures or ["none"])[0]
    if found not in SUPPORTED_ARCHITECTURES:
        raise InputError(
            f"model.path {path!r} holds a {found}; supported are "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    return hf_config


def head_dim(hf_config: PretrainedConfig) -> int:
    """Size of one attention head."""
    explicit = getattr(hf_config, "head_dim", None)
    return explicit or hf_config.hidden_size // hf_config.num_attention_heads


def padded_vocab_size(vocab_size: int, tensor_model_parallel_size: int) -> int:
    """Vocabulary rows after padding, so that every tensor-parallel rank holds as many."""
    return math.ceil(vocab_size / tensor_model_parallel_size) * tensor_model_parallel_size


def rotary_settings(hf_config: PretrainedConfig) -> dict[str, Any]:
    """`rope_theta`, `rope_type` and the type's own fields, whichever way the file spells them."""
    settings = dict(getattr(hf_config, "rope_parameters", None) or {})
    settings.setdefault("rope_theta", getattr(hf_config, "rope_theta", 10000.0))
    settings.setdefault("rope_type", "default")
    return settings


def rotary_inverse_frequencies(hf_config: PretrainedConfig) -> torch.Tensor | None:
    """Scaled inverse frequencies as Hugging Face computes them, or None for plain RoPE.

    Returns:
        [head_dim / 2] float32.

    Raises:
        InputError: A scaling that also rescales attention, which megatron-core's RoPE cannot.
    """
    rope_type = rotary_settings(hf_config)["rope_type"]
    if rope_type == "default":
        return None
    if rope_type not in ("llama3", "linear"):
        raise InputError(
            f"rope type {rope_type!r} in the model's config.json is not supported; "
            "supported are default, linear and llama3"
        )
    inverse_frequencies, _ = ROPE_INIT_FUNCTIONS[rope_type](hf_config, torch.device("cpu"))
    return inverse_frequencies.float()


def transformer_config(
    hf_config: PretrainedConfig,
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
) -> TransformerConfig:
    """The megatron-core configuration of a model of a supported family.

    Args:
        hf_config: The model's own configuration.
        model: Dropout, recomputation, and megatron-core fields passed through.
        parallel: Layout.
        precision: Number formats.

    Returns:
        The configuration; its loss is a sum whose denominators the caller has put in
        (`calculate_per_token_loss`), so that gradients do not depend on the layout.
    """
    interleaved = (parallel.virtual_pipeline_model_parallel_size or 1) > 1
    cuda = torch.cuda.is_available()
    fields: dict[str, Any] = {
        "num_layers": hf_config.num_hidden_layers,
        "hidden_size": hf_config.hidden_size,
        "ffn_hidden_size": hf_config.intermediate_size,
        "num_attention_heads": hf_config.num_attention_heads,
        "num_query_groups": hf_config.num_key_value_heads,
        "kv_channels": head_dim(hf_config),
        "layernorm_epsilon": hf_config.rms_norm_eps,
        "normalization": "RMSNorm",
        "activation_func": F.silu,
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "add_qkv_bias": hf_config.model_type == "qwen2",
        "qk_layernorm": hf_config.model_type in ("qwen3", "qwen3_moe"),
        "attention_dropout": model.attention_dropout,
        "hidden_dropout": model.hidden_dropout,
        "recompute_granularity": model.recompute_granularity,
        "recompute_method": model.recompute_method,
        "recompute_num_layers": model.recompute_num_layers,
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline_model_parallel_size,
        "context_parallel_size": parallel.context_parallel_size,
        "sequence_parallel": parallel.sequence_parallel,
        "calculate_per_token_loss": True,
        "variable_seq_lengths": not interleaved,
        # Variable lengths are refused with the default dispatcher, even without experts.
        "moe_token_dispatcher_type": "alltoall",
        # With batched sends the interleaved schedule computes wrong gradients.
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        "batch_p2p_sync": cuda,
        "use_cpu_initialization": not cuda,
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
        "bias_activation_fusion": cuda,
        "bias_dropout_fusion": cuda,
        "apply_rope_fusion": False,
        # Weights are overwritten right after construction.
        "perform_initialization": False,
    }
    fields |= expert_fields(hf_config, parallel) | transformer_precision(precision)
    return TransformerConfig(**(fields | model.megatron))
