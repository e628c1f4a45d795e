"""Which keys each query of a packed row sees."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.policy.segments import Segments, natural_order, zigzag_positions


@st.composite
def rows(draw: st.DrawFn) -> tuple[Segments, int]:
    """A row, and context-parallel ranks that can share it."""
    size = draw(st.sampled_from([1, 2, 3]))
    multiple = 1 if size == 1 else 2 * size
    lengths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    prefixes: list[int | None] = []
    for number in range(len(lengths)):
        roots = [before for before in range(number) if prefixes[before] is None]
        prefixes.append(draw(st.sampled_from([None, *roots])))
    return Segments(tuple(length * multiple for length in lengths), tuple(prefixes)), size


def whole_mask(segments: Segments) -> torch.Tensor:
    """[s, s] bool, from the definition: a query sees its segment up to itself, and the prefix."""
    number = torch.arange(len(segments.lengths)).repeat_interleave(torch.tensor(segments.lengths))
    prefix = torch.tensor([-1 if each is None else each for each in segments.prefixes])[number]
    place = torch.arange(len(number))
    own = (number[:, None] == number) & (place[:, None] >= place)
    return own | (prefix[:, None] == number)


@given(rows())
def test_pieces_see_their_prefix_and_what_is_before(case: tuple[Segments, int]) -> None:
    segments, size = case
    place = torch.arange(sum(segments.lengths))
    mask = torch.zeros(len(place), len(place), dtype=torch.bool)
    for rank in range(size):
        held = [
            own[zigzag_positions(len(own), rank, size)] for own in place.split(segments.lengths)
        ]
        queries = torch.cat(held).split([p.queries for p in segments.pieces(rank, size)])
        for piece, own in zip(segments.pieces(rank, size), queries, strict=True):
            keys = torch.cat(piece.keys_of(place.split(segments.lengths)))
            assert len(keys) == piece.num_keys
            causal = torch.ones(len(own), len(keys), dtype=torch.bool).tril(len(keys) - len(own))
            mask[own[:, None], keys] = causal
    assert torch.equal(mask, whole_mask(segments))


@given(rows())
def test_natural_order_puts_the_shares_of_ranks_together(case: tuple[Segments, int]) -> None:
    segments, size = case
    place = torch.arange(sum(segments.lengths))
    shares = [
        own[zigzag_positions(len(own), rank, size)]
        for rank in range(size)
        for own in place.split(segments.lengths)
    ]
    assert torch.equal(torch.cat(shares)[natural_order(segments.lengths, size)], place)


def test_zigzag_positions_are_those_of_megatron() -> None:
    held = [zigzag_positions(8, rank, 2).tolist() for rank in range(2)]
    assert held == [[0, 1, 6, 7], [2, 3, 4, 5]]
