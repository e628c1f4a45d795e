"""What differs from megatron-core in a layer's attention: the kernel on CPUs, and the key cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import (
    _yarn_get_concentration_factor_from_config as rotary_factor,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention
from torch.nn.functional import scaled_dot_product_attention

from megatron_resrl.platform.distributed import on_device
from megatron_resrl.policy.packing import PackedSequences
from megatron_resrl.policy.rotary import rotate
from megatron_resrl.policy.segments import Piece, Segments, natural_order
from megatron_resrl.policy.short_pieces import Calls, StackedPieces, calls_of

_STACKED_DIMENSIONS = 5


class SdpaCoreAttention(MegatronModule):
    """Causal or explicitly masked attention for megatron-core's local layer spec.

    Plugs into `SelfAttentionSubmodules.core_attention`. Grouped-query attention is handled by
    the kernel. Without a mask, queries and keys of equal length are causal; fewer queries than
    keys (cached decoding) see all earlier keys. Packed sequences do not see each other, but for a
    prefix that they share. Under
    context parallelism each rank gathers the keys and values of all ranks. In layers with a window
    (megatron-core's `window_size` and `window_attn_skip_freq`) a query sees only the last keys.

    Attributes:
        cp_group: Ranks that hold shares of the same sequences; None: sequences are whole.
        tokens_before: Keys before its own that a query sees in a layer with a window; None: all.
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
        self.cp_group = None if pg_collection is None else pg_collection.cp
        windowed = is_layer_window_attention(
            config.window_size, config.window_attn_skip_freq, layer_number
        )
        self.tokens_before: int | None = config.window_size[0] if windowed else None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSequences | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Attends.

        Args:
            query: [q, b, heads, head_dim], or [q, heads, head_dim] of packed sequences.
            key: [k, b, query_groups, head_dim], or [k, query_groups, head_dim].
            value: As `key`.
            attention_mask: [b, 1, q, k], True where attention is forbidden (Megatron's
                convention), or None.
            attn_mask_type: megatron-core's; not used.
            attention_bias: None; megatron-core passes it.
            packed_seq_params: Where packed sequences begin and end, padding included; None: every
                row is one sequence.

        Returns:
            [q, b, heads * head_dim]; b is 1 for packed sequences.

        Raises:
            ValueError: There is an attention bias, or a mask for packed or split sequences.
        """
        if attention_bias is not None:
            raise ValueError("SdpaCoreAttention takes no attention bias")
        group = self.cp_group
        rank, ranks = (0, 1) if group is None else (group.rank(), group.size())
        if packed_seq_params is None and ranks == 1:
            return self._attend(query, key, value, attention_mask)
        if attention_mask is not None:
            raise ValueError("packed or split sequences are causal; they take no attention mask")
        if packed_seq_params is None:
            segments = Segments.apart((query.shape[0] * ranks,))
            pieces = segments.pieces(rank, ranks)
        else:
            query, key, value = (x.unsqueeze(1) for x in (query, key, value))
            segments, pieces = packed_seq_params.segments, packed_seq_params.pieces
        if group is not None and ranks > 1:
            key, value = gather_keys(key, value, segments, group)
        return self._attend_pieces(query, key, value, segments, pieces)

    def _attend_pieces(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: Segments,
        pieces: tuple[Piece, ...],
    ) -> torch.Tensor:
        """A row of [s, 1, heads, head_dim]: queries of pieces, keys and values of segments."""
        if query.is_cuda or query.shape[1] > 1:  # Not packed: a few long pieces.
            calls = Calls((), tuple(range(len(pieces))), None)
        else:
            calls = calls_of(pieces, segments.lengths, self.tokens_before)
        context = [self._attend_stacked(query, key, value, each) for each in calls.stacked]
        if calls.alone:
            keys, values = (x.split(segments.lengths) for x in (key, value))
            queries = query.split([piece.queries for piece in pieces])
            for number in calls.alone:
                seen = (_joined(pieces[number].keys_of(parts)) for parts in (keys, values))
                context.append(self._attend(queries[number], *seen))
        together = _joined(context)
        return together if calls.order is None else together.index_select(0, calls.order)

    def _attend_stacked(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: StackedPieces
    ) -> torch.Tensor:
        """[tokens, 1, heads * head_dim] of the call's pieces, behind one another."""
        # [s, 1, heads, head_dim] -> [n, heads, Q, head_dim]
        query, key, value = (
            x.squeeze(1).index_select(0, places.flatten()).unflatten(0, places.shape)
            for x, places in ((query, call.queries), (key, call.keys), (value, call.keys))
        )
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        context = self._kernel(query, key, value, call.allowed).transpose(1, 2)
        context = context.flatten(2).flatten(0, 1)
        return context.index_select(0, call.kept)[:, None]

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One sequence per row; without a mask the queries are the last of the keys' positions."""
        queries = query.shape[0]
        allowed = None if attention_mask is None else ~attention_mask
        if self.tokens_before is not None:
            # Keys too old for the first query are too old for all.
            first = max(0, key.shape[0] - queries - self.tokens_before)
            key, value = key[first:], value[first:]
            allowed = None if allowed is None else allowed[..., first:]
        keys = key.shape[0]
        cut = self.tokens_before is not None and keys > self.tokens_before + 1
        if queries > 1 and (cut or (allowed is None and queries < keys)):
            # [q, k]: row i is position keys - queries + i.
            band = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
            band = band.tril(keys - queries)
            if self.tokens_before is not None:  # Leaves the band as it is where nothing is cut.
                band = band.triu(keys - queries - self.tokens_before)
            allowed = band if allowed is None else allowed & band
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        context = self._kernel(query, key, value, allowed)
        # [b, heads, q, head_dim] -> [q, b, heads * head_dim]
        return context.permute(2, 0, 1, 3).flatten(2)

    def _kernel(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        allowed: torch.Tensor | None,
    ) -> torch.Tensor:
        """torch's attention of [b, heads, q, head_dim]; without a mask it is causal."""
        batch, heads, queries, _ = query.shape
        groups = key.shape[1]
        if queries == 1:
            # Decoding: the heads of a group attend to the same keys, like queries of one head.
            query = query.reshape(batch, groups, heads // groups, -1)
        elif query.is_cuda and allowed is not None and heads != groups:
            # With a mask, CUDA's kernels that hold no [q, k] scores want a key for each head.
            key, value = (x.repeat_interleave(heads // groups, dim=1) for x in (key, value))
        elif not query.is_cuda:
            # The CPU's kernel reads a head's rows often, and faster where they are neighbours.
            query, key, value = (x.contiguous() for x in (query, key, value))
        context = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=allowed,
            is_causal=allowed is None and queries > 1,
            dropout_p=self.attention_dropout if self.training else 0.0,
            scale=self.softmax_scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return context.reshape(batch, heads, queries, -1)


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def gather_keys(
    key: torch.Tensor, value: torch.Tensor, segments: Segments, group: dist.ProcessGroup
) -> tuple[torch.Tensor, ...]:
    """Keys and values of the whole segments, in their order, from all context-parallel ranks.

    Their gradient is summed over the ranks on its way back.

    Args:
        key: [s / CP, ..., head_dim] of this rank.
        value: As `key`.
        segments: Of the whole row.
        group: Ranks that hold shares of it.

    Returns:
        Keys and values, [s, ..., head_dim] each.
    """
    gathered = gather_from_sequence_parallel_region(
        torch.cat([key, value], dim=-1), tensor_parallel_output_grad=True, group=group
    )
    # All ranks' shares lie one after the other.
    order = on_device(natural_order(segments.lengths, group.size()), gathered.device)
    return gathered.index_select(0, order).chunk(2, dim=-1)


class _TokenAngles(NamedTuple):
    """Angles of each packed token [s, 1, 1, head_dim], for queries and for keys."""

    query: torch.Tensor
    key: torch.Tensor


class RotatedCacheAttention(SelfAttention):
    """Self-attention that rotates packed tokens, and keys before it caches them, by itself.

    megatron-core's static cache holds keys without their rotary embedding and rotates the whole
    cache again for each new token, which after a few hundred tokens takes longer than all the rest
    of the layer. Its rotation of packed sequences reads their lengths from the device in every
    layer; here the angles of each token's position are picked on the device.

    Where layers differ in their rotary embedding, the model passes both, stacked.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        rotary_pos_emb: torch.Tensor | None = None,
        packed_seq_params: PackedSequences | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends; see megatron-core's `Attention`.

        Args:
            hidden_states: [s, b, h], or [s / TP, b, h] under sequence parallelism.
            *args: The base class's.
            rotary_pos_emb: [s, 1, 1, head_dim] angles, or [2, s, 1, 1, head_dim] of layers without
                a window and with one.
            packed_seq_params: Where packed sequences begin and end; None: every row is one.
            **kwargs: The base class's.
        """
        if rotary_pos_emb is not None and rotary_pos_emb.dim() == _STACKED_DIMENSIONS:
            windowed = is_layer_window_attention(
                self.config.window_size, self.config.window_attn_skip_freq, self.layer_number
            )
            rotary_pos_emb = rotary_pos_emb[int(windowed)]
        angles: torch.Tensor | _TokenAngles | None = rotary_pos_emb
        if rotary_pos_emb is not None and packed_seq_params is not None:
            of_tokens = rotary_pos_emb[packed_seq_params.position_ids]
            angles = _TokenAngles(of_tokens, of_tokens)
        return super().forward(
            hidden_states,
            *args,
            rotary_pos_emb=angles,
            packed_seq_params=packed_seq_params,
            **kwargs,
        )

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
        whole_on_cpu = inference_context is None and not query.is_cuda
        if rotary_pos_emb is not None and (
            isinstance(rotary_pos_emb, _TokenAngles) or whole_on_cpu
        ):
            query = self._rotated(query, rotary_pos_emb[0])
            key = self._rotated(key, rotary_pos_emb[1])
            rotary_pos_emb = None
        # The angles of queries and keys, where keys are cached as they are after the rotation.
        angles = None if inference_context is None else rotary_pos_emb
        if angles is not None:
            first = inference_context.sequence_len_offset
            key = self._rotated(key, angles[1][first : first + key.shape[0]])
        query, key, value, remaining, *rest = super()._adjust_key_value_for_inference(
            inference_context, query, key, value, rotary_pos_emb, *args, **kwargs
        )
        if angles is not None:
            remaining = (remaining[0], None)
        return query, key, value, remaining, *rest

    def _rotated(self, states: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """Queries or keys [s, b, heads, head_dim], rotated as the base class does it."""
        if not states.is_cuda:
            return rotate(states, angles, rotary_factor(self.config))
        return apply_rotary_pos_emb(
            states,
            angles,
            config=self.config,
            mscale=rotary_factor(self.config),
            cp_group=self.pg_collection.cp,
        )
