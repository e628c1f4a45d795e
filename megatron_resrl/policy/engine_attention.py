"""What differs from megatron-core in the attention of Transformer Engine's layers."""

from __future__ import annotations

import enum
import functools
import importlib
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_resrl.policy.attention import gather_keys
from megatron_resrl.policy.packing import PackedSequences


class _Mask(enum.Enum):
    """Transformer Engine's masks that megatron-core's enumeration lacks; the name is passed on."""

    padding_causal_bottom_right = enum.auto()
    """The last query of a piece sees all of the piece's keys."""


@functools.cache
def with_shared_prefixes(core_attention: type[torch.nn.Module]) -> type:
    """Attention in which segments of a packed row may see the tokens of a prefix.

    The kernel gets each piece of queries with keys of its own, so that a prefix's are copied for
    every segment that sees them, in this module only. Under context parallelism the keys of all
    ranks are gathered instead of passed around the ring, which knows whole sequences only.

    Args:
        core_attention: megatron-core's class for Transformer Engine.

    Returns:
        A subclass.
    """

    class WithSharedPrefixes(core_attention):  # type: ignore[valid-type,misc]  # A base known when it runs.
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            # Without a fused kernel the mask is made of the lengths of queries and of keys, not of
            # queries alone. Transformer Engine sets the same where it caches keys.
            self.unfused_attention.attention_type = "cross"

        def forward(
            self,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: torch.Tensor | None,
            attn_mask_type: Any,
            *,
            packed_seq_params: PackedSequences | None = None,
            **kwargs: Any,
        ) -> torch.Tensor:
            packed = packed_seq_params
            if packed is None or not packed.segments.shared:
                return super().forward(
                    query,
                    key,
                    value,
                    attention_mask,
                    attn_mask_type,
                    packed_seq_params=packed,
                    **kwargs,
                )
            ring = (self.cp_group, self.cp_global_ranks, self.cp_stream, self.cp_comm_type)
            if self.config.context_parallel_size > 1:
                key, value = gather_keys(key, value, packed.segments, self.cp_group)
                self.set_context_parallel_group(None, None, None, self.cp_comm_type)
            try:
                return super().forward(
                    query,
                    _of_each_piece(key, packed),
                    _of_each_piece(value, packed),
                    attention_mask,
                    _Mask.padding_causal_bottom_right,
                    packed_seq_params=packed,
                    **kwargs,
                )
            finally:
                self.set_context_parallel_group(*ring)

    WithSharedPrefixes.__name__ = WithSharedPrefixes.__qualname__ = (
        f"{core_attention.__name__}WithSharedPrefixes"
    )
    return WithSharedPrefixes


def has_fused_kernel(config: TransformerConfig) -> bool:
    """Whether Transformer Engine attends to shared prefixes without a matrix of all scores.

    Its own choice of a kernel is asked: of a piece with keys of a prefix, packed, in the model's
    number format.
    """
    utils: Any = importlib.import_module(
        "transformer_engine.pytorch.attention.dot_product_attention.utils"
    )
    tensor_ranks = config.tensor_model_parallel_size
    choice = utils.get_attention_backend(
        utils.AttentionParams(
            qkv_dtype=config.params_dtype,
            qkv_layout="thd_thd_thd",
            num_heads=config.num_attention_heads // tensor_ranks,
            num_gqa_groups=max(1, config.num_query_groups // tensor_ranks),
            # Odd: older kernels want multiples of 64, which pieces are not.
            max_seqlen_q=65,
            max_seqlen_kv=129,
            head_dim_qk=config.kv_channels,
            head_dim_v=config.kv_channels,
            attn_mask_type=_Mask.padding_causal_bottom_right.name,
            deterministic=config.deterministic_mode,
        )
    )
    use_flash_attention, _, use_fused_attention, *_ = choice
    return bool(use_flash_attention or use_fused_attention)


def _of_each_piece(states: torch.Tensor, packed: PackedSequences) -> torch.Tensor:
    """[sum of the pieces' keys, ...] of the row's keys or values [s, ...]."""
    segments = states.split(packed.segments.lengths)
    return torch.cat([part for piece in packed.pieces for part in piece.keys_of(segments)])
