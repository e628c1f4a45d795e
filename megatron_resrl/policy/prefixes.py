"""Which sequences begin alike, so that the model need be fed their beginning only once."""

from __future__ import annotations

from typing import NamedTuple

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


def with_prefixes(
    token_ids: Tensor, prompt_lengths: Tensor, fed: list[int], multiple: int
) -> list[FedLength]:
    """Finds what sequences of one prompt share.

    The prefix ends at the first token that differs, which may lie behind the prompt, as in episodes
    of several turns. Every sequence keeps at least one token of its own. A prefix has no padding,
    which the tokens behind it would see: it is cut to a multiple, and what is cut off stands in
    each sequence.

    Args:
        token_ids: [B, L] int64, on the CPU.
        prompt_lengths: [B] int64.
        fed: [B] tokens that the model is fed of each.
        multiple: Of padded lengths.

    Returns:
        Of each sequence; prefixes are numbered from 0.
    """
    members: dict[bytes, list[int]] = {}
    for row, length in enumerate(prompt_lengths.tolist()):
        members.setdefault(token_ids[row, :length].numpy().tobytes(), []).append(row)
    lengths = [FedLength(tokens) for tokens in fed]
    number = 0
    for rows in members.values():
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
