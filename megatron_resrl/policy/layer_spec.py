"""Which modules a transformer layer is made of on this machine."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_layer_local_spec,
)
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_resrl.policy.attention import RotatedCacheAttention, SdpaCoreAttention


class RmsNorm(torch.nn.RMSNorm):
    """torch's RMSNorm whose weight is marked for sequence parallelism.

    megatron-core's wrapper refuses sequence parallelism because it does not mark the weight;
    marked, `finalize_model_grads` sums its gradient over the tensor-parallel ranks.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel


def uses_transformer_engine() -> bool:
    """Whether layers are Transformer Engine's: on CUDA, where it is installed."""
    from megatron.core.fp8_utils import HAVE_TE

    return torch.cuda.is_available() and HAVE_TE


def decoder_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """Layers of this pipeline stage and the final norm.

    Args:
        config: Of the whole model.
        vp_stage: Index of the model chunk under interleaved pipelining, else None.

    Returns:
        megatron-core's specification of the decoder block.
    """
    if uses_transformer_engine():
        spec = get_gpt_decoder_block_spec(config, use_transformer_engine=True, vp_stage=vp_stage)
    else:
        spec = _local_spec(config, vp_stage)
    for layer in spec.layer_specs:
        layer.submodules.self_attention.module = RotatedCacheAttention
    return spec


def _local_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    layer = get_gpt_layer_local_spec(
        qk_layernorm=config.qk_layernorm, normalization=config.normalization
    )
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = SdpaCoreAttention
    if config.qk_layernorm:
        attention.q_layernorm = RmsNorm
        attention.k_layernorm = RmsNorm
    layer.submodules.input_layernorm = RmsNorm
    layer.submodules.pre_mlp_layernorm = RmsNorm
    layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=RmsNorm)
