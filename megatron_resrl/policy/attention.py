"""What differs from megatron-core in a layer's attention: the kernel on CPUs, and the key cache."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.functional import scaled_dot_product_attention


class SdpaCoreAttention(MegatronModule):
    """Causal or explicitly masked attention for megatron-core's local layer spec.

    Plugs into `SelfAttentionSubmodules.core_attention`. Grouped-query attention is handled by
    the kernel. Without a mask, queries and keys of equal length are causal; fewer queries than
    keys (cached decoding) see all earlier keys.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale
        self.attention_dropout = (
            config.attention_dropout if attention_dropout is None else attention_dropout
        )

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
        **_: Any,
    ) -> torch.Tensor:
        """Attends.

        Args:
            query: [q, b, heads, head_dim].
            key: [k, b, query_groups, head_dim].
            value: [k, b, query_groups, head_dim].
            attention_mask: [b, 1, q, k], True where attention is forbidden (Megatron's
                convention), or None.

        Returns:
            [q, b, heads * head_dim].
        """
        if packed_seq_params is not None or attention_bias is not None:
            raise ValueError("SdpaCoreAttention takes padded batches without an attention bias")
        queries, batch = query.shape[:2]
        allowed = None if attention_mask is None else ~attention_mask
        if allowed is None and 1 < queries < key.shape[0]:
            allowed = torch.ones(queries, key.shape[0], dtype=torch.bool, device=query.device)
            allowed = allowed.tril(key.shape[0] - queries)
        context = scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            attn_mask=allowed,
            is_causal=allowed is None and queries > 1,
            dropout_p=self.attention_dropout if self.training else 0.0,
            scale=self.softmax_scale,
            enable_gqa=key.shape[2] != query.shape[2],
        )
        return context.permute(2, 0, 1, 3).reshape(queries, batch, -1)


class RotatedCacheAttention(SelfAttention):
    """Self-attention that caches keys with their rotary embedding.

    megatron-core's static cache holds them without it and rotates the whole cache again for each
    new token, which after a few hundred tokens takes longer than all the rest of the layer.
    """

    def _adjust_key_value_for_inference(
        self,
        inference_context: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rotary_pos_emb: tuple[torch.Tensor, torch.Tensor] | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        cached = inference_context is not None and rotary_pos_emb is not None
        if cached:
            first = inference_context.sequence_len_offset
            key = apply_rotary_pos_emb(
                key,
                rotary_pos_emb[1][first : first + key.shape[0]],
                config=self.config,
                cp_group=self.pg_collection.cp,
            )
        query, key, value, rotary_pos_emb, *rest = super()._adjust_key_value_for_inference(
            inference_context, query, key, value, rotary_pos_emb, *args, **kwargs
        )
        if cached:
            rotary_pos_emb = (rotary_pos_emb[0], None)
        return query, key, value, rotary_pos_emb, *rest
