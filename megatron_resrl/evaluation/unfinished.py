"""Evaluations that were stopped: what they have generated is not generated again.

    <output_dir>/evaluation.unfinished/step_000002/round_3_group_00007.1f2e3d4c.parquet

holds the responses to question 7 of part 3 of set 2, see `RolloutLog`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

from megatron_resrl.config.schema import Recipe
from megatron_resrl.evaluation.sets import EvaluationSet
from megatron_resrl.rollout.engine import GenerationRequest, Response, RolloutEngine, TrainingRound
from megatron_resrl.rollout.engines.resumable import ResumableEngine
from megatron_resrl.rollout.log import RolloutLog, run_identity
from megatron_resrl.weights.model_digest import model_digests

FOLDER = "evaluation.unfinished"
_WAVES = 4
"""Times `rollout.max_running_samples` in a part: what a stopped evaluation loses at most, and large
enough that few responses are waited for alone at its end."""


@dataclass(frozen=True)
class Unfinished:
    """Responses of an evaluation that is under way. Every rank makes the same calls."""

    log: RolloutLog
    running_samples: int
    """Responses that are generated at once by all replicas."""

    def generate(
        self, engine: RolloutEngine, request: GenerationRequest, number: int
    ) -> list[list[Response]]:
        """The responses to a request, those of an evaluation that was stopped among them.

        An engine that finishes groups together gets the request in parts, so that there is
        something to keep before the end. Random numbers are those of the whole request.

        Args:
            engine: Generates what is not there yet.
            request: Of all questions of a set.
            number: Of the set.
        """
        resumable = ResumableEngine(engine, self.log)
        size = len(request.prompts)
        if engine.finishes_groups_together:
            size = max(1, _WAVES * self.running_samples // request.sampling.n)
        found: list[list[Response]] = []
        for part, start in enumerate(range(0, len(request.prompts), size)):
            places = range(start, min(start + size, len(request.prompts)))
            found += resumable.generate(
                request.select(places, None).of_round(TrainingRound(number, part))
            )
        return found

    def discard(self) -> None:
        """Deletes everything, once the evaluation is written."""
        if dist.get_rank() == 0:
            shutil.rmtree(self.log.directory, ignore_errors=True)


def unfinished_evaluation(
    recipe: Recipe, sets: Sequence[EvaluationSet], replicas: int
) -> Unfinished | None:
    """Where the responses of an evaluation are kept until it is written; None: nowhere.

    What an evaluation of another model, or with other settings, has left there is not used.

    Args:
        recipe: `checkpoint.keep_rollouts` decides.
        sets: All of the evaluation.
        replicas: Data-parallel size.
    """
    if not recipe.checkpoint.keep_rollouts:
        return None
    asked = [asdict(each.settings) | {"reward": None} for each in sets]
    model = model_digests(recipe.model.path, recipe.model.tokenizer_path)
    identity = run_identity(recipe, json.dumps([model, asked], sort_keys=True, default=str))
    log = RolloutLog(Path(recipe.output_dir) / FOLDER, identity)
    return Unfinished(log, recipe.rollout.max_running_samples * replicas)
