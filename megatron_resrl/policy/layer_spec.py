"""Which modules a transformer layer is made of on this machine."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

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


def decoder_spec(
    config: TransformerConfig, vp_stage: int | None, *, engine: bool | None = None
) -> TransformerBlockSubmodules:
    """Layers of this pipeline stage and the final norm.

    Args:
        config: Of the whole model.
        vp_stage: Index of the model chunk under interleaved pipelining, else None.
        engine: Of Transformer Engine's layers; None: as `uses_transformer_engine` says.

    Returns:
        megatron-core's specification of the decoder block.
    """
    engine = uses_transformer_engine() if engine is None else engine
    spec = get_gpt_decoder_block_spec(
        config,
        use_transformer_engine=engine,
        normalization=config.normalization,
        vp_stage=vp_stage,
    )
    for layer in spec.layer_specs:
        layer.submodules.self_attention.module = RotatedCacheAttention
        if not engine:
            _replace_local_modules(layer.submodules, config)
    if not engine:
        spec.layer_norm = RmsNorm
    return spec


def _replace_local_modules(layer: TransformerLayerSubmodules, config: TransformerConfig) -> None:
    """Puts our attention kernel and norm into a layer of megatron-core's own modules."""
    attention = layer.self_attention.submodules
    attention.core_attention = SdpaCoreAttention
    if config.qk_layernorm:
        attention.q_layernorm = RmsNorm
        attention.k_layernorm = RmsNorm
    layer.input_layernorm = RmsNorm
    layer.pre_mlp_layernorm = RmsNorm
    if layer.mlp.module is MoELayer:
        # Its norm is not fused in Transformer Engine's layers either; a checkpoint names it alike.
        layer.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.", None)
