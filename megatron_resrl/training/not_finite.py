"""What a run does about steps whose loss or gradient is not a number."""

from __future__ import annotations

from pathlib import Path

from megatron_resrl.config.schema import OptimizerConfig
from megatron_resrl.errors import RunError


class NotFinite(RunError):
    """Too many gradients were not finite; weights and optimizer are as before them."""

    common = True


class NotFiniteSteps:
    """Counts steps in a row with a skipped update; the same on all ranks.

    Args:
        optimizer: The recipe's section.
    """

    def __init__(self, optimizer: OptimizerConfig) -> None:
        self._stop = optimizer.non_finite == "stop"
        self._rolls_back = optimizer.non_finite == "rollback"
        self._allowed = 1 if self._stop else optimizer.max_non_finite
        self._in_a_row = 0

    def count(self, step: int, finite: bool, dump: Path) -> str | None:
        """Takes note of a step, before it is saved.

        Args:
            step: Its number.
            finite: No update of it was skipped.
            dump: Where its batch was written if one was.

        Returns:
            Why the run must go back to a checkpoint, if it must.

        Raises:
            NotFinite: The run must not go on.
        """
        self._in_a_row = 0 if finite else self._in_a_row + 1
        if self._in_a_row < self._allowed:
            return None
        if self._rolls_back:
            return (
                f"the loss or a gradient was not finite in {self._in_a_row} steps in a row "
                f"(optimizer.max_non_finite; the last batch is in {dump})"
            )
        setting = (
            "optimizer.non_finite = stop"
            if self._stop
            else f"optimizer.max_non_finite = {self._allowed} such steps in a row"
        )
        raise NotFinite(
            f"step {step}: the loss or a gradient was not finite ({setting}); no weight was "
            f"changed by it and it was not saved. Its batch is in {dump}: look there for what the "
            "loss cannot bear, or lower optimizer.lr. The same command continues from the newest "
            "checkpoint, with optimizer.non_finite = skip leaving such updates out"
        )
