"""What layers know of packed sequences."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_resrl.platform.distributed import on_device
from megatron_resrl.policy.segments import Piece, Segments


@dataclass
class PackedSequences(PackedSeqParams):
    """megatron-core's description of packed sequences, and what every layer would otherwise have to
    read back from the device."""

    segments: Segments = field(default_factory=lambda: Segments((), ()))
    """Of the whole row, on the host."""
    pieces: tuple[Piece, ...] = ()
    """Of this rank's queries."""
    position_ids: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """[s] int64: positions of this rank's tokens in their whole sequences."""

    @classmethod
    def of(
        cls, segments: Segments, position_ids: torch.Tensor, rank: int = 0, size: int = 1
    ) -> PackedSequences:
        """The description of a row; padding counts as part of its segment.

        Where a prefix is shared, the lengths are those of this rank's pieces: attention that reads
        them is given each piece's keys, see `Piece.keys_of`.

        Args:
            segments: Of the whole row.
            position_ids: [s] int64 of this rank's tokens.
            rank: Context-parallel rank.
            size: Context-parallel ranks.
        """
        pieces = segments.pieces(rank, size)
        queries = keys = segments.lengths
        if segments.shared:
            queries = tuple(piece.queries for piece in pieces)
            keys = tuple(piece.num_keys for piece in pieces)
        ends = _ends(queries, position_ids.device)
        return cls(
            qkv_format="thd",
            cu_seqlens_q=ends,
            cu_seqlens_kv=_ends(keys, position_ids.device) if segments.shared else ends,
            max_seqlen_q=max(queries),
            max_seqlen_kv=max(keys),
            segments=segments,
            pieces=pieces,
            position_ids=position_ids,
        )


def _ends(lengths: Iterable[int], place: torch.device) -> torch.Tensor:
    """[number + 1] int32: 0, and where each length ends."""
    return on_device(torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32), place)
