"""The engine of a run that replays rollouts and has none."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_resrl.errors import RunError
from megatron_resrl.rollout.engine import OnGroup, PendingRollout, RolloutEngine, SamplingParams


class NoEngine(RolloutEngine):
    """Refuses to generate; everything else costs nothing. See `RolloutEngine`."""

    def __init__(self, directory: str) -> None:
        """
        Args:
            directory: `rollout.replay`.
        """
        self._directory = directory

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        seed: Sequence[int],
        indices: Sequence[int] | None = None,
        on_group: OnGroup | None = None,
    ) -> PendingRollout:
        """Refuses.

        Raises:
            RunError: Always.
        """
        raise self._refusal(len(prompts))

    def update_weights(self, version: int) -> dict[str, float]:
        """Nobody needs the weights."""
        return {}

    def sleep(self) -> None:
        """Nothing to free."""

    def close(self) -> None:
        """Nothing was started."""

    def _refusal(self, prompts: int) -> RunError:
        return RunError(
            f"rollout.replay = {self._directory!r}: no engine was started, and responses to "
            f"{prompts} prompts are wanted that were not recorded; leave rollout.replay out"
        )
