"""Which sequences begin alike, so that the model need be fed their beginning only once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor


class FedLength(NamedTuple):
    """What the model is fed of a sequence."""

    tokens: int
    """Prefix included."""
    prefix: int = -1
    """Number of the prefix that it shares with other sequences of the batch; -1: none."""
    shared: int = 0
    """Tokens of that prefix."""

    def padded(self, multiple: int) -> int:
        """Positions of the whole sequence."""
        return -(-self.tokens // multiple) * multiple


def rows_of_prompts(token_ids: Tensor, prompt_lengths: Tensor) -> list[list[int]]:
    """Rows by their prompt.

    Args:
        token_ids: [B, L] int64, on the CPU.
        prompt_lengths: [B] int64.
    """
    members: dict[bytes, list[int]] = {}
    for row, length in enumerate(prompt_lengths.tolist()):
        members.setdefault(token_ids[row, :length].numpy().tobytes(), []).append(row)
    return list(members.values())


def rows_that_begin_alike(token_ids: Tensor, fed: Sequence[int], multiple: int) -> list[list[int]]:
    """Rows in groups with one prefix each: of runs of neighbours, those that save the most tokens.

    In the order of their tokens, rows that begin alike are neighbours. What a run of neighbours
    saves is the shortest beginning that two of them have in common, once for each but the first.

    Args:
        token_ids: [B, L] int64, on the CPU.
        fed: [B] tokens that the model is fed of each.
        multiple: Of padded lengths.
    """
    rows = [token_ids[row, :length].numpy() for row, length in enumerate(fed)]
    order = sorted(range(len(rows)), key=lambda row: rows[row].tobytes())
    # [B]: what a row has in common with the one before it, its last token not counted.
    common = np.zeros(len(rows), dtype=np.int64)
    for place, (before, row) in enumerate(itertools.pairwise(order), start=1):
        length = min(fed[before], fed[row]) - 1
        differs = (rows[before][:length] != rows[row][:length]).nonzero()[0]
        common[place] = int(differs[0]) if len(differs) else length
    common = common // multiple * multiple
    # most[n]: tokens that the first n rows save at most; their last group begins at first[n].
    most, first = np.zeros(len(rows) + 1, dtype=np.int64), np.zeros(len(rows) + 1, dtype=np.int64)
    for end in range(1, len(rows) + 1):
        # Of groups that begin at end - 1, end - 2, ..., 0.
        shared = np.append(0, np.minimum.accumulate(common[end - 1 : 0 : -1]))
        saved = most[:end][::-1] + np.arange(end) * shared
        size = int(saved.argmax())
        most[end], first[end] = saved[size], end - 1 - size
    groups, end = [], len(rows)
    while end:
        groups.append(sorted(order[first[end] : end]))
        end = int(first[end])
    return groups


def with_prefixes(
    token_ids: Tensor, groups: Iterable[Sequence[int]], fed: Sequence[int], multiple: int
) -> list[FedLength]:
    """Finds what sequences that belong together share.

    The prefix ends at the first token that differs, which may lie behind the prompt, as in episodes
    of several turns. Every sequence keeps at least one token of its own. A prefix has no padding,
    which the tokens behind it would see: it is cut to a multiple, and what is cut off stands in
    each sequence.

    Args:
        token_ids: [B, L] int64, on the CPU.
        groups: Rows that may share a prefix.
        fed: [B] tokens that the model is fed of each.
        multiple: Of padded lengths.

    Returns:
        Of each sequence; prefixes are numbered from 0.
    """
    lengths = [FedLength(tokens) for tokens in fed]
    number = 0
    for group in groups:
        rows = list(group)
        longest = min(fed[row] for row in rows) - 1
        if len(rows) == 1 or longest < multiple:
            continue
        tokens = token_ids[rows, :longest]
        alike = int((tokens == tokens[0]).all(0).long().cumprod(0).sum())
        shared = alike // multiple * multiple
        if not shared:
            continue
        for row in rows:
            lengths[row] = FedLength(fed[row], number, shared)
        number += 1
    return lengths
