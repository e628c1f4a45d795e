"""A range of a flattened tensor as blocks of the tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Block(NamedTuple):
    """A rectangular part of a tensor."""

    offset: tuple[int, ...]
    """Index of its first element, by dimension."""
    shape: tuple[int, ...]


def blocks_in_range(
    shape: Sequence[int], strides: Sequence[int], start: int, stop: int
) -> Iterator[Block]:
    """Cuts what a range of memory holds of a tensor into as few blocks as rows allow.

    A range begins and ends within a row: a matrix gives the end of one row, whole rows, and the
    beginning of another.

    Args:
        shape: Of the tensor, without a zero.
        strides: Of its dimensions, each at least as large as what the dimensions with smaller
            strides span: a transposed or a narrowed tensor has such strides, too.
        start: First position of the range, counted from the tensor's first element; may lie before
            it.
        stop: Position after the last one; may lie behind the tensor.

    Yields:
        Disjoint blocks that together hold the tensor's elements of the range.
    """
    by_stride = sorted((d for d in range(len(shape)) if shape[d] > 1), key=lambda d: -strides[d])
    span = 1 + sum((shape[d] - 1) * strides[d] for d in by_stride)
    if stop <= 0 or start >= span:
        return
    if start <= 0 and stop >= span:
        yield Block((0,) * len(shape), tuple(shape))
        return
    outer = by_stride[0]
    rows, step = shape[outer], strides[outer]
    row_span = span - (rows - 1) * step
    # Rows that lie in the range as a whole, then those of which it has a part.
    first, last = max(0, -(-start // step)), min(rows, (stop - row_span) // step + 1)
    if first < last:
        yield _row_block(shape, outer, first, last)
    for row in range(max(0, (start - row_span) // step + 1), min(rows, -(-stop // step))):
        if first <= row < last:
            continue
        one_row = _row_block(shape, outer, row, row + 1)
        for part in blocks_in_range(one_row.shape, strides, start - row * step, stop - row * step):
            offset = tuple(map(sum, zip(one_row.offset, part.offset, strict=True)))
            yield Block(offset, part.shape)


def _row_block(shape: Sequence[int], outer: int, first: int, last: int) -> Block:
    """All of the tensor that lies in rows `first` to `last` - 1 of one dimension."""
    offset, sizes = [0] * len(shape), list(shape)
    offset[outer], sizes[outer] = first, last - first
    return Block(tuple(offset), tuple(sizes))
