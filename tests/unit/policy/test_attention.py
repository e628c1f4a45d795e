"""The core attention used without Transformer Engine."""

from __future__ import annotations

import math

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_resrl.policy.attention import SdpaCoreAttention
from megatron_resrl.policy.packing import PackedSequences
from megatron_resrl.policy.segments import Segments

BATCH, HEADS, GROUPS, SIZE = 2, 4, 2, 8


def attention(window: int | None = None, **options: float) -> SdpaCoreAttention:
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * SIZE,
        num_attention_heads=HEADS,
        window_size=None if window is None else (window - 1, 0),
    )
    return SdpaCoreAttention(config, 1, None, "self", attention_dropout=0.0, **options)


def tensors(queries: int, keys: int) -> list[torch.Tensor]:
    """query, key, value as megatron-core passes them: [length, batch, heads, size]."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((queries, HEADS), (keys, GROUPS), (keys, GROUPS))
    return [torch.randn(n, BATCH, h, SIZE, generator=generator) for n, h in shapes]


def exact(
    tensors: list[torch.Tensor], forbidden: torch.Tensor, scale: float = 1 / math.sqrt(SIZE)
) -> torch.Tensor:
    """Softmax attention written out in float64; `forbidden` broadcasts to [b, heads, q, k]."""
    query, key, value = (x.double().permute(1, 2, 0, 3) for x in tensors)
    key, value = (x.repeat_interleave(HEADS // GROUPS, 1) for x in (key, value))
    weights = (query @ key.mT * scale).masked_fill(forbidden, -math.inf).softmax(-1)
    return (weights @ value).permute(2, 0, 1, 3).flatten(2)


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 1), (1, 7), (3, 7)])
def test_attention_without_a_mask_is_causal(queries: int, keys: int) -> None:
    inputs = tensors(queries, keys)
    position = torch.arange(keys - queries, keys)[:, None]
    forbidden = torch.arange(keys) > position
    # fp32 rounding of values of size 1.
    torch.testing.assert_close(
        attention()(*inputs, None).double(), exact(inputs, forbidden), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 7), (3, 7), (2, 3)])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_window_counts_the_query_itself(queries: int, keys: int, padded: bool) -> None:
    window, inputs = 3, tensors(queries, keys)
    position, key = torch.arange(keys - queries, keys)[:, None], torch.arange(keys)
    causal = (key > position).expand(BATCH, 1, queries, keys).clone()
    causal[0, :, :, 0] |= padded and keys > queries  # Left padding of the first row.
    found = attention(window)(*inputs, causal if padded else None)
    forbidden = causal | (key <= position - window)
    torch.testing.assert_close(found.double(), exact(inputs, forbidden), atol=1e-6, rtol=0)


def test_attention_mask_is_true_where_forbidden() -> None:
    inputs = tensors(5, 5)
    causal = torch.ones(5, 5).triu(1).bool()
    forbidden = causal.expand(BATCH, 1, 5, 5).clone()
    forbidden[0, :, 1:, 0] = True
    torch.testing.assert_close(
        attention()(*inputs, forbidden).double(), exact(inputs, forbidden), atol=1e-6, rtol=0
    )


def test_attention_uses_the_softmax_scale() -> None:
    inputs = tensors(5, 5)
    causal = torch.ones(5, 5).triu(1).bool()
    found = attention(softmax_scale=0.1)(*inputs, None)
    torch.testing.assert_close(found.double(), exact(inputs, causal, 0.1), atol=1e-6, rtol=0)


def test_attention_keeps_packed_sequences_apart() -> None:
    lengths = (3, 1, 5)
    query, key, value = (x[:, 0] for x in tensors(sum(lengths), sum(lengths)))
    packed = PackedSequences.of(Segments.apart(lengths), torch.arange(sum(lengths)))
    found = attention()(query, key, value, None, packed_seq_params=packed)
    alone = [
        attention()(*(x[:, None] for x in share), None)
        for share in zip(*(x.split(lengths) for x in (query, key, value)), strict=True)
    ]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-6, rtol=0)


@pytest.mark.parametrize("window", [None, 3], ids=["whole", "windowed"])
def test_attention_to_a_shared_prefix_is_that_of_copies(window: int | None) -> None:
    # A sequence of 3 tokens, a prefix of 4 with ends of 3 and 1, and another sequence of 2.
    segments = Segments((3, 4, 3, 2, 1), (None, None, 1, None, 1))
    inputs = [x[:, 0].requires_grad_() for x in tensors(13, 13)]
    packed = PackedSequences.of(segments, torch.arange(13))
    found = attention(window)(*inputs, None, packed_seq_params=packed)

    parts = [x.split(segments.lengths) for x in inputs]
    whole = [(0,), (1, 2), (3,), (1, 4)]
    copies = [[torch.cat([x[n] for n in path])[:, None] for x in parts] for path in whole]
    alone = [attention(window)(*x, None) for x in copies]
    expected = [alone[0], alone[1][:4], alone[1][4:], alone[2], alone[3][4:]]
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-6, rtol=0)
    factors = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((found * factors).sum(), inputs, retain_graph=True)
    theirs = torch.autograd.grad((torch.cat(expected) * factors).sum(), inputs)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=0)


def test_packed_sequences_tell_kernels_what_pieces_see() -> None:
    segments = Segments((4, 8, 4), (None, 0, 0))
    apart = PackedSequences.of(Segments.apart((4, 8)), torch.arange(12))
    assert apart.cu_seqlens_q.tolist() == apart.cu_seqlens_kv.tolist() == [0, 4, 12]
    whole = PackedSequences.of(segments, torch.arange(16))
    assert whole.cu_seqlens_q.tolist() == [0, 4, 12, 16]
    assert whole.cu_seqlens_kv.tolist() == [0, 4, 16, 24]
    assert (whole.max_seqlen_q, whole.max_seqlen_kv) == (8, 12)
    second = PackedSequences.of(segments, torch.arange(8), rank=1, size=2)
    assert second.cu_seqlens_q.tolist() == [0, 1, 2, 4, 6, 7, 8]
    # Of the prefix 2 and 3 keys, then the whole prefix and 4 and 6, and 2 and 3, of their own.
    assert second.cu_seqlens_kv.diff().tolist() == [2, 3, 8, 10, 6, 7]


def test_attention_refuses_what_packed_sequences_cannot_have() -> None:
    query, key, value = (x[:, 0] for x in tensors(5, 5))
    packed = PackedSequences.of(Segments.apart((5,)), torch.arange(5))
    mask = torch.ones(5, 5).triu(1).bool()
    with pytest.raises(ValueError, match="no attention mask"):
        attention()(query, key, value, mask, packed_seq_params=packed)
    with pytest.raises(ValueError, match="no attention bias"):
        attention()(*tensors(5, 5), None, attention_bias=mask)
