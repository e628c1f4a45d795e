"""Short pieces of a packed row, which attend together."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_resrl.policy.attention import SdpaCoreAttention
from megatron_resrl.policy.packing import PackedSequences
from megatron_resrl.policy.segments import Segments, natural_order
from megatron_resrl.policy.short_pieces import SHORT, calls_of

HEADS, GROUPS, SIZE = 4, 2, 8

ROWS = {
    "alike": Segments.apart((5,) * 6),
    "different": Segments.apart((1, 2, 3, 4, 1, 8, 7, 2)),
    # Two groups with ends of their own, one long sequence between them.
    "shared": Segments((4, 3, 1, 3, SHORT + 2, 6, 9, 1, 8), (None, 0, 0, 0, None, None, 5, 5, 5)),
    "long and short ends": Segments((SHORT - 1, 1, 2, 1, 1), (None, 0, 0, 0, 0)),
}


def exact(inputs: list[torch.Tensor], segments: Segments, window: int | None) -> torch.Tensor:
    """Softmax attention in float64: each token sees its segment's prefix and what is before it."""
    query, key, value = (x.double().transpose(0, 1) for x in inputs)
    key, value = (x.repeat_interleave(HEADS // GROUPS, 0) for x in (key, value))
    segment = torch.cat([torch.full((n,), i) for i, n in enumerate(segments.lengths)])
    prefix = torch.tensor([-1 if p is None else p for p in segments.prefixes])[segment]
    position = torch.cat(
        [segments.first_position(i) + torch.arange(n) for i, n in enumerate(segments.lengths)]
    )
    distance = position[:, None] - position
    seen = (segment[:, None] == segment) | (prefix[:, None] == segment)
    seen &= distance >= 0
    if window is not None:
        seen &= distance < window
    scores = (query @ key.mT / math.sqrt(SIZE)).masked_fill(~seen, -math.inf)
    return (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)


def made_attention(window: int | None) -> SdpaCoreAttention:
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * SIZE,
        num_attention_heads=HEADS,
        window_size=None if window is None else (window - 1, 0),
    )
    return SdpaCoreAttention(config, 1, None, "self", attention_dropout=0.0)


@pytest.mark.parametrize("window", [None, 3], ids=["whole", "windowed"])
@pytest.mark.parametrize("row", ROWS)
def test_short_pieces_attend_as_each_alone(row: str, window: int | None) -> None:
    segments = ROWS[row]
    tokens = sum(segments.lengths)
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(tokens, heads, SIZE, generator=generator).requires_grad_()
        for heads in (HEADS, GROUPS, GROUPS)
    ]
    packed = PackedSequences.of(segments, torch.arange(tokens))
    assert calls_of(packed.pieces, segments.lengths, None).stacked
    found = made_attention(window)(*inputs, None, packed_seq_params=packed)[:, 0]
    expected = exact(inputs, segments, window)
    # fp32 rounding of values of size 1, and of sums over dozens of queries in the gradients.
    torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=0)
    factors = torch.randn(found.shape, generator=generator)
    ours = torch.autograd.grad((found * factors).sum(), inputs)
    theirs = torch.autograd.grad((expected * factors).sum(), inputs)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", [0, 1])
def test_short_pieces_of_a_context_parallel_rank(rank: int) -> None:
    segments = Segments((4, 8, 4, 4, 8), (None, 0, 0, None, None))
    calls = calls_of(segments.pieces(rank, 2), segments.lengths, None).stacked
    # Rank 0 holds tokens 0 and 3 of the first segment, 0, 1, 6 and 7 of the second, and so on.
    own = natural_order(segments.lengths, 2).argsort().view(2, -1)[rank]
    for call in calls:
        rows = torch.arange(len(call.queries))[:, None].expand_as(call.queries).flatten()
        for place in call.kept.tolist():
            row, column = int(rows[place]), place % call.queries.shape[1]
            token = int(own[call.queries.flatten()[place]])
            seen = call.keys[row][call.allowed[row, 0, column]].tolist()
            # A query's last key is its own token, and no key is behind it.
            assert seen[-1] == token
            assert seen == sorted(seen)
    begins = [int(piece[0]) for call in calls for piece in call.queries]
    assert len(begins) == len(set(begins)) >= 6


def test_short_pieces_leave_long_ones_and_single_ones() -> None:
    segments = Segments.apart((SHORT + 1, SHORT + 1, 3, 9, SHORT, SHORT))
    calls = calls_of(segments.pieces(), segments.lengths, None)
    begins = list(itertools.accumulate(segments.lengths, initial=0))
    assert [call.queries[:, 0].tolist() for call in calls.stacked] == [begins[4:6]]
    assert calls.alone == (0, 1, 2, 3)


def test_short_pieces_of_rows_below_each_other() -> None:
    # The second of two context-parallel ranks: of 8 positions it has 2 to 5.
    segments = Segments.apart((8,))
    pieces = segments.pieces(1, 2)
    assert calls_of(pieces, segments.lengths, None).stacked
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(tokens, 2, heads, SIZE, generator=generator)
        for tokens, heads in ((4, HEADS), (8, GROUPS), (8, GROUPS))
    )
    found = made_attention(None)._attend_pieces(query, key, value, segments, pieces)
    whole = torch.cat([torch.zeros(2, 2, HEADS, SIZE), query, torch.zeros(2, 2, HEADS, SIZE)])
    for row in range(2):
        expected = exact([x[:, row] for x in (whole, key, value)], segments, None)[2:6]
        # fp32 rounding of values of size 1.
        torch.testing.assert_close(found[:, row].double(), expected, atol=2e-6, rtol=0)
