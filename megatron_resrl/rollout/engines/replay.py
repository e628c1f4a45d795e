"""The engine of a run that trains on recorded rollouts."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_resrl.platform.distributed import run_on_rank_zero
from megatron_resrl.rollout.engine import (
    DeferredRollout,
    GenerationRequest,
    PendingRollout,
    Response,
    RolloutEngine,
    WrappingEngine,
)
from megatron_resrl.rollout.group_table import Group
from megatron_resrl.rollout.recording import Recording, RecordingError


class ReplayEngine(WrappingEngine):
    """Answers the requests of training steps from a recording; generates nothing for them.

    It is also the rule (`SelectionRule`) by which a replayed step is made up: as it was recorded.
    """

    def __init__(self, engine: RolloutEngine, recording: Recording) -> None:
        """
        Args:
            engine: Takes new weights, sleeps and is closed as in any run.
            recording: Rollouts of the steps to come.
        """
        super().__init__(engine)
        self._recording = recording
        self._steps: dict[int, list[Group]] = {}

    def begin(self, request: GenerationRequest) -> PendingRollout:
        """See `RolloutEngine.begin`.

        Raises:
            RecordingError: The round is not recorded, or with other prompts. On all ranks.
        """
        responses = self._recorded_round(request)
        return DeferredRollout(lambda: responses)

    def further_prompts(self, step: int, rounds: Sequence[Sequence[bool]]) -> int:
        """As many as the recorded step has in its next round."""
        return sum(group.round == len(rounds) for group in self._groups(step))

    def choose(self, step: int, rounds: Sequence[Sequence[bool]]) -> list[tuple[int, int]]:
        """The groups that the recorded step was trained on.

        Raises:
            RecordingError: Column `group` does not number the groups of a step.
        """
        keys = {group.number: group.key for group in self._groups(step) if group.number is not None}
        if sorted(keys) != list(range(len(rounds[0]))):
            raise RecordingError(
                f"{self._recording.path(step)}: its column group has {len(keys)} numbers; those of "
                f"a step are 0 to {len(rounds[0]) - 1}"
            )
        self._steps.pop(step)
        return [keys[number] for number in sorted(keys)]

    def _groups(self, step: int) -> list[Group]:
        """All groups of a step; kept until the step's groups are chosen. Collective."""
        if step not in self._steps:
            self._steps[step] = run_on_rank_zero(lambda: self._recording.read(step))
        return self._steps[step]

    def _recorded_round(self, request: GenerationRequest) -> list[list[Response]]:
        """The responses to a request, which must be for the recorded prompts."""
        assert request.training_round is not None
        step, number = request.training_round
        path = self._recording.path(step)
        recorded = {group.index: group for group in self._groups(step) if group.round == number}
        count = len(request.prompts)
        if sorted(recorded) != list(range(count)):
            raise RecordingError(
                f"step {step}, round {number}: {path} holds {len(recorded)} groups, this run "
                f"has {count} prompts; replay with the recorded rollout.prompts_per_step"
            )
        for index, (prompt, record) in enumerate(
            zip(request.prompts, request.records, strict=True)
        ):
            if recorded[index].prompt_ids != tuple(prompt):
                raise RecordingError(
                    f"step {step}, round {number}, prompt {index}: {path} holds responses to "
                    f"another prompt, beginning with tokens {recorded[index].prompt_ids[:8]}; this "
                    f"run has record {record.index} of {record.data_source}, tokens "
                    f"{tuple(prompt[:8])}. Replay with the recorded data, seed and tokenizer"
                )
        return [recorded[index].responses for index in range(count)]
