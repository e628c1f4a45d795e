"""Builds what collects a run's groups."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_resrl.config.schema import RewardConfig
from megatron_resrl.config.schema_rollout import RolloutConfig
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
    settings: RolloutConfig,
    reward: RewardConfig,
    worker: RolloutWorker,
    rollout_log: RolloutLog,
    timers: PhaseTimers,
    *,
    seed: int,
    keep_rollouts: bool,
) -> Collector:
    """The collector of a training run. Collective.

    Args:
        settings: How responses are sampled, selected, recorded or replayed.
        reward: Of training.
        worker: Generates and grades.
        rollout_log: Finished groups of the run.
        timers: See `Collector`.
        seed: Of the run.
        keep_rollouts: `checkpoint.keep_rollouts`: finished groups are written to `rollout_log`, and
            those of a run that was killed are read.

    Raises:
        RecordingError: `rollout.record` names a recording of another run.
    """
    engine: RolloutEngine = worker.engine
    selection: SelectionRule = DynamicSampling(
        settings.max_refills if settings.dynamic_sampling else 0
    )
    if settings.replay:
        engine = selection = ReplayEngine(engine, Recording(settings.replay))
    elif keep_rollouts:
        engine = ResumableEngine(engine, rollout_log)
    recorder = None
    if settings.record:
        sampling = sampling_settings(settings)
        recorder = Recorder(settings.record, run=rollout_log.identity, sampling=sampling)

    def require_finite(prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> None:
        try:
            require_finite_responses(
                prompts, responses, worker.policy, worker.model_path, phase="rollout of training"
            )
        except LogitsNotFinite:
            rollout_log.discard()  # A run with mended weights must not read the groups again.
            raise

    return Collector(
        engine=engine,
        sampling=SamplingParams.of(settings, worker.stop_token_ids, settings.group_size),
        selection=selection,
        grader=worker.graders.of(reward),
        tokenizer=worker.tokenizer,
        reward=reward,
        require_finite=require_finite,
        timers=timers,
        seed=seed,
        recorder=recorder,
        plays_episodes=settings.environment is not None,
    )
