"""What layers know of packed sequences."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams


@dataclass
class PackedSequences(PackedSeqParams):
    """megatron-core's description of packed sequences, and what every layer would otherwise have to
    read back from the device."""

    lengths: tuple[int, ...] = ()
    """Padded lengths of the whole sequences, on the host."""
    position_ids: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """[s] int64: positions of this rank's tokens in their whole sequences."""
