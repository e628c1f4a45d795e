"""What differs from megatron-core in the attention of Transformer Engine's layers."""

from __future__ import annotations

import enum
import functools
from typing import Any

import torch

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


def _of_each_piece(states: torch.Tensor, packed: PackedSequences) -> torch.Tensor:
    """[sum of the pieces' keys, ...] of the row's keys or values [s, ...]."""
    segments = states.split(packed.segments.lengths)
    return torch.cat([part for piece in packed.pieces for part in piece.keys_of(segments)])
