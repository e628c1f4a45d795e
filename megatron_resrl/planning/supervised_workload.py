"""What a micro-batch of a dry run of pretraining or fine-tuning holds."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PretrainWorkload:
    """Sequences that are cut into documents alike."""

    parts: tuple[int, ...]
    """Tokens of each document's part of a sequence, one more than the sequence feeds in all."""
    whole_step: bool = False
    """Take all micro-batches of a step; False: a few, and count all others as those."""


@dataclass(frozen=True)
class SftWorkload:
    """Micro-batches of conversations, all alike."""

    conversations: tuple[tuple[int, int], ...]
    """Of one micro-batch: tokens before the answer, at least 1, and tokens of the answer."""
    own: int
    """Conversations of a replica in a step."""
    whole_step: bool = False
    """See `PretrainWorkload.whole_step`."""

    @property
    def micro_batches(self) -> int:
        """Of a replica in a step."""
        return math.ceil(self.own / len(self.conversations))
