"""What stands in place of servers in a run that replays rollouts and starts none."""

from __future__ import annotations

from megatron_resrl.errors import RunError
from megatron_resrl.rollout.engine import GenerationRequest, PendingRollout, RolloutEngine


class AbsentEngine(RolloutEngine):
    """Refuses to generate; everything else costs nothing. See `RolloutEngine`."""

    def __init__(self, directory: str) -> None:
        """
        Args:
            directory: `rollout.replay`.
        """
        self._directory = directory

    def begin(self, request: GenerationRequest) -> PendingRollout:
        """Refuses.

        Raises:
            RunError: Always.
        """
        raise RunError(
            f"rollout.replay = {self._directory!r}: responses to {len(request.prompts)} prompts "
            "are not recorded, and no engine runs to generate them; set rollout.replay to null"
        )

    def update_weights(self, version: int) -> dict[str, float]:
        """Nobody needs the weights."""
        return {}

    def sleep(self) -> None:
        """Nothing to free."""

    def close(self) -> None:
        """Nothing was started."""
