"""Which checkpoints of a run stay on disk."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Retention:
    """The rules; a checkpoint is kept if at least one rule keeps it."""

    keep_last: int = 2
    """Number of newest checkpoints to keep; at least 1."""
    keep_every: int = 0
    """Keep checkpoints whose step is a multiple of this number; 0: off."""
    best_metric: str | None = None
    """Keep the checkpoint whose metric of this name is best."""
    best_mode: Literal["max", "min"] = "max"
    """Whether the largest or the smallest value is best."""

    def best(self, metrics: Mapping[int, Mapping[str, float | None]]) -> int | None:
        """The step of the best checkpoint, the earliest of equals.

        Args:
            metrics: Metrics of each checkpoint by step; one without `best_metric`, or whose value
                is not finite, does not compete.
        """
        if self.best_metric is None:
            return None
        sign = 1 if self.best_mode == "max" else -1
        values = {
            step: sign * value
            for step, each in metrics.items()
            if (value := each.get(self.best_metric)) is not None and math.isfinite(value)
        }
        return max(sorted(values), key=values.__getitem__, default=None)

    def kept(self, steps: Collection[int], best: int | None) -> set[int]:
        """The steps whose checkpoints stay.

        Args:
            steps: Of all checkpoints.
            best: From `best`.
        """
        kept = set(sorted(steps)[-self.keep_last :])
        if self.keep_every:
            kept |= {step for step in steps if step % self.keep_every == 0}
        return kept | ({best} if best is not None else set())
