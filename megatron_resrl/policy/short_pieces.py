"""Pieces of a packed row that attend in one call, because each is too short for a call of its own.

A call of the attention kernel takes tens of microseconds on a CPU whatever it is given, and a row
of short responses has a hundred pieces. Pieces of about the same size are padded and stacked.

Shapes: n pieces of one call, Q and K the most queries and keys of them.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_resrl.policy.segments import Piece

SHORT = 32
"""Keys of a piece up to which a call costs more than what is padded for saving it."""


@dataclass(frozen=True)
class StackedPieces:
    """What one call of the kernel takes."""

    numbers: tuple[int, ...]
    """Of its pieces, ascending."""
    queries: Tensor
    """[n, Q] int64: places in the row's queries; 0 beyond the end of a piece."""
    keys: Tensor
    """[n, K] int64: places in the row's keys; 0 beyond the end of a piece."""
    allowed: Tensor
    """[n, 1, Q, K] bool: which keys a query sees; a padded query sees the first key."""
    kept: Tensor
    """[tokens] int64: places in [n * Q] of what is no padding, piece by piece."""
    lengths: tuple[int, ...]
    """Queries of each piece."""


@functools.lru_cache(maxsize=16)
def stacked_pieces(
    pieces: tuple[Piece, ...], lengths: tuple[int, ...], tokens_before: int | None
) -> tuple[StackedPieces, ...]:
    """The calls for all short pieces of a row that are not alone of their size.

    Args:
        pieces: Of the row, in order of their queries.
        lengths: Of the row's segments, which hold the keys.
        tokens_before: Keys before its own that a query sees; None: all.

    Returns:
        Calls; no piece is in two of them.
    """
    alike = defaultdict(list)
    for number, piece in enumerate(pieces):
        if piece.num_keys <= SHORT:
            # Of one power of two each, so that less than half of either is padding.
            alike[piece.queries.bit_length(), piece.num_keys.bit_length()].append(number)
    first_queries = [0, *itertools.accumulate(piece.queries for piece in pieces)]
    first_keys = [0, *itertools.accumulate(lengths)]
    return tuple(
        _stacked(numbers, pieces, first_queries, first_keys, tokens_before)
        for numbers in alike.values()
        if len(numbers) > 1
    )


def _stacked(
    numbers: list[int],
    pieces: tuple[Piece, ...],
    first_queries: list[int],
    first_keys: list[int],
    tokens_before: int | None,
) -> StackedPieces:
    chosen = [pieces[number] for number in numbers]
    most_queries = max(piece.queries for piece in chosen)
    most_keys = max(piece.num_keys for piece in chosen)
    queries = torch.zeros(len(chosen), most_queries, dtype=torch.int64)
    keys = torch.zeros(len(chosen), most_keys, dtype=torch.int64)
    for row, (number, piece) in enumerate(zip(numbers, chosen, strict=True)):
        begin = first_queries[number]
        queries[row, : piece.queries] = torch.arange(begin, begin + piece.queries)
        parts = [first_keys[of] + torch.arange(count) for of, count in piece.keys]
        keys[row, : piece.num_keys] = torch.cat(parts)
    query, key = torch.arange(most_queries), torch.arange(most_keys)
    of_queries = torch.tensor([piece.queries for piece in chosen])[:, None]
    # [n, Q, 1]: the key that is the query's own.
    own = (torch.tensor([p.num_keys for p in chosen])[:, None] - of_queries + query)[..., None]
    allowed = key <= own
    if tokens_before is not None:
        allowed &= key >= own - tokens_before
    real = query < of_queries
    allowed = torch.where(real[..., None], allowed, key == 0)
    return StackedPieces(
        numbers=tuple(numbers),
        queries=queries,
        keys=keys,
        allowed=allowed[:, None],
        kept=real.flatten().nonzero()[:, 0],
        lengths=tuple(piece.queries for piece in chosen),
    )
