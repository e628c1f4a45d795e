"""Builds what collects a run's groups from its recipe."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_resrl.config.schema import Recipe
from megatron_resrl.data.prompts import Prompt
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.policy.finite import LogitsNotFinite
from megatron_resrl.rollout.collector import Collector
from megatron_resrl.rollout.engine import Response, RolloutEngine, SamplingParams
from megatron_resrl.rollout.engines.replay import ReplayEngine
from megatron_resrl.rollout.engines.resumable import ResumableEngine
from megatron_resrl.rollout.finite import require_finite_responses
from megatron_resrl.rollout.log import RolloutLog
from megatron_resrl.rollout.recording import Recorder, Recording, sampling_settings
from megatron_resrl.rollout.selection import DynamicSampling, SelectionRule
from megatron_resrl.rollout.worker import RolloutWorker


def build_collector(
    recipe: Recipe, worker: RolloutWorker, rollout_log: RolloutLog, timers: PhaseTimers
) -> Collector:
    """The collector of a training run. Collective.

    Args:
        recipe: All settings.
        worker: Generates and grades.
        rollout_log: Finished groups of the run.
        timers: See `Collector`.

    Raises:
        RecordingError: `rollout.record` names a recording of another run.
    """
    settings = recipe.rollout
    engine: RolloutEngine = worker.engine
    selection: SelectionRule = DynamicSampling(
        settings.max_refills if settings.dynamic_sampling else 0
    )
    if settings.replay:
        engine = selection = ReplayEngine(engine, Recording(settings.replay))
    elif recipe.checkpoint.keep_rollouts:
        engine = ResumableEngine(engine, rollout_log)
    recorder = None
    if settings.record:
        sampling = sampling_settings(settings)
        recorder = Recorder(settings.record, run=rollout_log.identity, sampling=sampling)

    def require_finite(prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> None:
        try:
            require_finite_responses(
                prompts, responses, worker.policy, recipe.model.path, phase="rollout of training"
            )
        except LogitsNotFinite:
            rollout_log.discard()  # A run with mended weights must not read the groups again.
            raise

    return Collector(
        engine=engine,
        sampling=SamplingParams.of(settings, worker.stop_token_ids, settings.group_size),
        selection=selection,
        grader=worker.graders.of(recipe.reward),
        tokenizer=worker.tokenizer,
        reward=recipe.reward,
        require_finite=require_finite,
        timers=timers,
        seed=recipe.seed,
        recorder=recorder,
        plays_episodes=settings.environment is not None,
    )
