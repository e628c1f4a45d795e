"""An engine around any engine that does not generate again what a stopped run had finished."""

from __future__ import annotations

import logging

from megatron_resrl.rollout.engine import (
    DeferredRollout,
    GenerationRequest,
    PendingRollout,
    Response,
    RolloutEngine,
    WrappingEngine,
)
from megatron_resrl.rollout.group_table import Group
from megatron_resrl.rollout.log import RolloutLog

logger = logging.getLogger(__name__)


class ResumableEngine(WrappingEngine):
    """Takes finished groups of training steps from the log, generates and logs the others."""

    def __init__(self, engine: RolloutEngine, log: RolloutLog) -> None:
        """
        Args:
            engine: Generates.
            log: Finished groups of the run.
        """
        super().__init__(engine)
        self._log = log

    def begin(self, request: GenerationRequest) -> PendingRollout:
        """See `RolloutEngine.begin`; requests outside of training are the inner engine's alone.

        Raises:
            RunFileError: From `result`, on all ranks: a finished group could not be kept.
        """
        if request.training_round is None:
            return self.engine.begin(request)
        round_ = request.training_round
        found = {group.index: group for group in self._log.read(round_)}
        prompts = [tuple(prompt) for prompt in request.prompts]
        known = {
            place: found[place].responses
            for place, prompt in enumerate(prompts)
            if place in found and found[place].prompt_ids == prompt
        }
        if known:
            logger.info(
                "step %d, round %d: %d of %d groups were finished before and are taken from %s",
                *round_,
                len(known),
                len(prompts),
                self._log.directory,
            )
        if len(known) == len(prompts):
            return DeferredRollout(lambda: [known[place] for place in range(len(prompts))])
        # An engine that finishes groups together left a part of them only if the process was killed
        # within the milliseconds in which they were written: it decodes the same batches again.
        places = [
            place
            for place in range(len(prompts))
            if self.finishes_groups_together or place not in known
        ]

        def keep(place: int, responses: list[Response]) -> None:
            index = places[place]
            if index not in known:
                self._log.append(
                    round_.step, Group(round_.number, index, prompts[index], responses)
                )
            if request.on_group is not None:
                request.on_group(index, responses)

        pending = self.engine.begin(request.select(places, keep))

        def result() -> list[list[Response]]:
            responses = dict(zip(places, pending.result(), strict=True)) | known
            self._log.confirm()
            return [responses[place] for place in range(len(prompts))]

        return DeferredRollout(result)
