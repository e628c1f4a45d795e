"""Blocks of a tensor that a range of its memory holds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from megatron_resrl.checkpoint.blocks import Block, blocks_in_range

VIEWS = {
    "vector": ((7,), (1,)),
    "scalar": ((), ()),
    "matrix": ((5, 4), (4, 1)),
    "one row": ((1, 6), (6, 1)),
    "transposed": ((4, 5), (1, 4)),
    "columns of a matrix": ((3, 2), (10, 1)),
    "three dimensions": ((3, 4, 5), (20, 5, 1)),
    "a dimension of one": ((3, 1, 4), (4, 99, 1)),
}
"""Shape and strides."""


def indices(block: Block) -> list[tuple[int, ...]]:
    ranges = (range(o, o + n) for o, n in zip(block.offset, block.shape, strict=True))
    return list(itertools.product(*ranges))


@pytest.mark.parametrize("name", VIEWS)
def test_blocks_hold_each_element_of_a_range_once(name: str) -> None:
    shape, strides = VIEWS[name]
    places = {
        index: sum(i * s for i, s in zip(index, strides, strict=True))
        for index in indices(Block((0,) * len(shape), shape))
    }
    end = max(places.values()) + 3
    for start, stop in itertools.combinations(range(-2, end), 2):
        found = [
            i for block in blocks_in_range(shape, strides, start, stop) for i in indices(block)
        ]
        assert sorted(found) == sorted(i for i, place in places.items() if start <= place < stop)


@pytest.mark.parametrize(
    ("start", "stop", "blocks"),
    [
        (0, 12, [((0, 0), (3, 4))]),
        (4, 12, [((1, 0), (2, 4))]),
        (2, 11, [((1, 0), (1, 4)), ((0, 2), (1, 2)), ((2, 0), (1, 3))]),
        (5, 7, [((1, 1), (1, 2))]),
        (12, 20, []),
    ],
)
def test_blocks_are_whole_rows_and_two_ends(start: int, stop: int, blocks: Sequence[tuple]) -> None:
    assert list(blocks_in_range((3, 4), (4, 1), start, stop)) == blocks
