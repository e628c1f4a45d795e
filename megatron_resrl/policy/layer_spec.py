"""Which modules a transformer layer is made of on this machine."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from megatron_resrl.platform.megatron_versions import module_of, submodules_of
from megatron_resrl.policy.attention import RotatedCacheAttention, SdpaCoreAttention
from megatron_resrl.policy.engine_attention import with_shared_prefixes


class RmsNorm(torch.nn.RMSNorm):
    """torch's RMSNorm whose weight is marked for sequence parallelism.

    megatron-core's wrapper refuses sequence parallelism because it does not mark the weight;
    marked, `finalize_model_grads` sums its gradient over the tensor-parallel ranks.

    With `layernorm_zero_centered_gamma` it multiplies by 1 + weight, and rounds once, at the end.

    Attributes:
        plain: It multiplies by the weight itself.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]  # A mark.
        self.plain = not config.layernorm_zero_centered_gamma

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises the last dimension of [..., hidden_size]."""
        if self.plain:
            return super().forward(x)
        weight = 1 + self.weight.float()
        return F.rms_norm(x.float(), self.normalized_shape, weight, self.eps).type_as(x)


@functools.cache
def with_norm_after(linear: type[torch.nn.Module], norm: type[torch.nn.Module]) -> type:
    """A row-parallel matrix whose output is normalised before the residual is added.

    Args:
        linear: megatron-core's class, or its class for Transformer Engine.
        norm: Class of the norm, `post_layernorm` in the result.

    Returns:
        A subclass of `linear`.
    """

    class Normalised(linear):  # type: ignore[valid-type,misc]  # A base known when it runs.
        def __init__(self, *args: Any, config: TransformerConfig, **options: Any) -> None:
            super().__init__(*args, config=config, **options)
            self.post_layernorm = norm(
                config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon
            )

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            output, bias = super().forward(x)
            return self.post_layernorm(output), bias

    Normalised.__name__ = Normalised.__qualname__ = f"{linear.__name__}WithNorm"
    return Normalised


@functools.cache
def zero_at_padding(core_attention: type[torch.nn.Module]) -> type:
    """Attention whose result is zero at padding, where the mask says which positions are padding.

    Queries of padding attend to the tokens before them. Without this their results would enter the
    scales of FP8, see `PolicyModel.forward`.

    Args:
        core_attention: megatron-core's class for Transformer Engine, or ours.

    Returns:
        A subclass, whose `attention_mask` may be `MicroBatch.padding`.
    """

    class ZeroAtPadding(core_attention):  # type: ignore[valid-type,misc]  # A base known when it runs.
        def forward(
            self,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None,
            *args: Any,
            **kwargs: Any,
        ) -> torch.Tensor:
            if attention_mask is None or attention_mask.dim() != 2:  # [b, 1, q, k]: decoding.
                return super().forward(query, key, value, attention_mask, *args, **kwargs)
            attended = super().forward(query, key, value, None, *args, **kwargs)
            # [b, s] -> [s, b, 1], or [s, 1] of packed sequences.
            padding = attention_mask.T.reshape(*attended.shape[:-1], 1)
            return attended.masked_fill(padding, 0)

    ZeroAtPadding.__name__ = ZeroAtPadding.__qualname__ = f"ZeroAtPadding{core_attention.__name__}"
    return ZeroAtPadding


def uses_transformer_engine() -> bool:
    """Whether layers are Transformer Engine's: on CUDA, where it is installed."""
    from megatron.core.fp8_utils import HAVE_TE

    return torch.cuda.is_available() and HAVE_TE


def decoder_spec(
    config: TransformerConfig,
    vp_stage: int | None,
    *,
    norms_after_blocks: bool = False,
    engine: bool | None = None,
) -> TransformerBlockSubmodules:
    """Layers of this pipeline stage and the final norm.

    Args:
        config: Of the whole model.
        vp_stage: Index of the model chunk under interleaved pipelining, else None.
        norms_after_blocks: See `Family`.
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
    # Layers that are alike share one specification.
    for layer in {id(layer): layer for layer in spec.layer_specs}.values():
        layer.submodules.self_attention.module = RotatedCacheAttention
        if not engine:
            _replace_local_modules(layer.submodules, config)
        attention = layer.submodules.self_attention.submodules
        if engine:
            attention.core_attention = with_shared_prefixes(attention.core_attention)
        if config.window_size is not None:
            # One kernel on all devices: the one whose windows are compared with transformers.
            attention.core_attention = SdpaCoreAttention
        if config.fp8:
            attention.core_attention = zero_at_padding(attention.core_attention)
        if norms_after_blocks:
            _add_norms_after_blocks(layer.submodules, engine=engine)
    if not engine:
        spec.layer_norm = RmsNorm
    return spec


def _add_norms_after_blocks(layer: TransformerLayerSubmodules, *, engine: bool) -> None:
    """Gives the last matrices of attention and MLP a norm of their own."""
    norm: type = RmsNorm
    if engine:
        from megatron.core.extensions.transformer_engine import TENorm

        norm = TENorm
    attention, mlp = layer.self_attention.submodules, submodules_of(layer.mlp)
    attention.linear_proj = with_norm_after(attention.linear_proj, norm)
    mlp.linear_fc2 = with_norm_after(mlp.linear_fc2, norm)


def _replace_local_modules(layer: TransformerLayerSubmodules, config: TransformerConfig) -> None:
    """Puts our attention kernel and norm into a layer of megatron-core's own modules."""
    attention = layer.self_attention.submodules
    attention.core_attention = SdpaCoreAttention
    if config.qk_layernorm:
        attention.q_layernorm = RmsNorm
        attention.k_layernorm = RmsNorm
    layer.input_layernorm = RmsNorm
    layer.pre_mlp_layernorm = RmsNorm
    if module_of(layer.mlp) is MoELayer:
        # Its norm is not fused in Transformer Engine's layers either; a checkpoint names it alike.
        layer.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.", None)
