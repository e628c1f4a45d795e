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

    queries: Tensor
    """[n, Q] int64: places in the row's queries; 0 beyond the end of a piece."""
    keys: Tensor
    """[n, K] int64: places in the row's keys; 0 beyond the end of a piece."""
    allowed: Tensor
    """[n, 1, Q, K] bool: which keys a query sees; a padded query sees the first key."""
    kept: Tensor
    """[tokens] int64: places in [n * Q] of what is no padding, piece by piece."""


@dataclass(frozen=True)
class Calls:
    """The calls for the pieces of a row."""

    stacked: tuple[StackedPieces, ...]
    """No piece is in two of them."""
    alone: tuple[int, ...]
    """Numbers of the pieces that have a call of their own."""
    order: Tensor | None
    """[s] int64: where the row's tokens are behind one another after these calls; None: in
    their order."""


@functools.lru_cache(maxsize=16)
def calls_of(
    pieces: tuple[Piece, ...], lengths: tuple[int, ...], tokens_before: int | None
) -> Calls:
    """Stacks all short pieces that are not the only ones of their size.

    Args:
        pieces: Of the row, in order of their queries.
        lengths: Of the row's segments, which hold the keys.
        tokens_before: Keys before its own that a query sees; None: all.
    """
    alike = defaultdict(list)
    for number, piece in enumerate(pieces):
        if piece.num_keys <= SHORT:
            # Of one power of two each, so that less than half of either is padding.
            alike[piece.queries.bit_length(), piece.num_keys.bit_length()].append(number)
    groups = [numbers for numbers in alike.values() if len(numbers) > 1]
    together = {number for numbers in groups for number in numbers}
    alone = tuple(number for number in range(len(pieces)) if number not in together)
    first_queries = [0, *itertools.accumulate(piece.queries for piece in pieces)]
    first_keys = [0, *itertools.accumulate(lengths)]
    places = [
        place
        for number in itertools.chain(*groups, alone)
        for place in range(first_queries[number], first_queries[number + 1])
    ]
    in_order = places == sorted(places)
    return Calls(
        tuple(_stacked(each, pieces, first_queries, first_keys, tokens_before) for each in groups),
        alone,
        None if in_order else torch.tensor(places).argsort(),
    )


def _stacked(
    numbers: list[int],
    pieces: tuple[Piece, ...],
    first_queries: list[int],
    first_keys: list[int],
    tokens_before: int | None,
) -> StackedPieces:
    chosen = [pieces[number] for number in numbers]
    num_queries = torch.tensor([piece.queries for piece in chosen])[:, None]
    num_keys = torch.tensor([piece.num_keys for piece in chosen])[:, None]
    query, key = torch.arange(int(num_queries.max())), torch.arange(int(num_keys.max()))
    real = query < num_queries
    begins = torch.tensor([first_queries[number] for number in numbers])[:, None]
    seen = [
        [first_keys[of] + place for of, count in piece.keys for place in range(count)]
        for piece in chosen
    ]
    # [n, Q, 1]: the key that is the query's own.
    own = (num_keys - num_queries + query)[..., None]
    allowed = key <= own
    if tokens_before is not None:
        allowed &= key >= own - tokens_before
    allowed = torch.where(real[..., None], allowed, key == 0)
    return StackedPieces(
        queries=torch.where(real, begins + query, 0),
        keys=torch.tensor([each + [0] * (len(key) - len(each)) for each in seen]),
        allowed=allowed[:, None],
        kept=real.flatten().nonzero()[:, 0],
    )
