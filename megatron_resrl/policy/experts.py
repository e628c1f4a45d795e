"""Mixture-of-experts models: their megatron-core fields, and which replicas must keep step."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from transformers import PretrainedConfig

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.policy.layer_spec import uses_transformer_engine


def has_experts(hf_config: PretrainedConfig) -> bool:
    """Whether the model is one of the supported mixtures of experts."""
    return hf_config.model_type in ("qwen3_moe", "mixtral")


def expert_fields(hf_config: PretrainedConfig, parallel: ParallelConfig) -> dict[str, Any]:
    """megatron-core `TransformerConfig` fields of a mixture of experts; none for a dense model.

    Routing is Hugging Face's: a softmax over all experts in fp32 whose k largest are kept, and
    divided by their sum (Mixtral always, Qwen3-MoE if `norm_topk_prob`), which is the softmax over
    the k largest logits. No token is dropped and no balancing loss is added: a token's output
    depends on that token alone, and the loss is the policy's.
    """
    if not has_experts(hf_config):
        return {}
    sparse = _sparse_layers(hf_config)
    inner = getattr(hf_config, "moe_intermediate_size", None) or hf_config.intermediate_size
    return {
        # transformers reads Mixtral's `num_local_experts` under this name too.
        "num_moe_experts": hf_config.num_experts,
        # A list makes megatron-core store every layer by itself, even if all are alike.
        "moe_layer_freq": 1 if all(sparse) else sparse,
        "moe_ffn_hidden_size": inner,
        "moe_router_topk": hf_config.num_experts_per_tok,
        "moe_router_score_function": "softmax",
        "moe_router_pre_softmax": not getattr(hf_config, "norm_topk_prob", True),
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
        "moe_grouped_gemm": uses_transformer_engine(),
        "expert_model_parallel_size": parallel.expert_model_parallel_size,
        "expert_tensor_parallel_size": parallel.expert_tensor_parallel_size,
    }


def _sparse_layers(hf_config: PretrainedConfig) -> list[int]:
    """1 for each layer with experts and 0 for each dense one; Mixtral has no dense layer."""
    dense = getattr(hf_config, "mlp_only_layers", None) or ()
    step = getattr(hf_config, "decoder_sparse_step", 1)
    return [
        int(layer not in dense and not (layer + 1) % step)
        for layer in range(hf_config.num_hidden_layers)
    ]


def lock_step_group(*, decoding: bool = False) -> dist.ProcessGroup | None:
    """Ranks with batches of their own that must run as many forward passes.

    They share one set of experts, and every layer exchanges tokens between all of them.

    Args:
        decoding: Context-parallel ranks decode different prompts; else they share sequences.

    Returns:
        The group, or None where all ranks that share experts have the same batches.
    """
    group = parallel_state.get_expert_tensor_and_model_parallel_group()
    if decoding:
        replica = parallel_state.get_tensor_model_parallel_group()
    else:
        replica = parallel_state.get_tensor_and_context_parallel_group()
    return group if dist.get_world_size(group) > dist.get_world_size(replica) else None
