"""Reinforcement learning with verifiable rewards, from the first rollout to the last checkpoint.

One step: sample G responses per prompt, grade them, score their tokens and weight those of the
incorrect ones by how far they lie outside the subspace of the correct ones, update the policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megatron_resrl.checkpoint import TrainerState
from megatron_resrl.config.schema import Recipe
from megatron_resrl.data.prompts import Prompt
from megatron_resrl.data.sampler import PromptSampler
from megatron_resrl.data.think import think_marker_ids
from megatron_resrl.diagnostics.records import complete, readable
from megatron_resrl.diagnostics.standard import standard_observers
from megatron_resrl.diagnostics.without_signal import WithoutSignal
from megatron_resrl.evaluation.results import responses_folder
from megatron_resrl.evaluation.run import evaluate_sets
from megatron_resrl.evaluation.sets import evaluation_sets
from megatron_resrl.observe.phases import PHASES, phase
from megatron_resrl.platform.distributed import run_on_every_rank
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.rollout.build import build_collector
from megatron_resrl.rollout.collector import Collector
from megatron_resrl.rollout.log import RolloutLog, run_identity
from megatron_resrl.rollout.queue import RolloutQueue
from megatron_resrl.rollout.worker import RolloutWorker, open_worker
from megatron_resrl.token_weighting.factory import build_weighting
from megatron_resrl.token_weighting.protocol import TokenWeighting
from megatron_resrl.training.algorithm import algorithm_of, weighting_of
from megatron_resrl.training.identity import Identity
from megatron_resrl.training.other_models import OtherModels, other_models
from megatron_resrl.training.questions import Questions, read_questions, rl_identity
from megatron_resrl.training.rl_step import StepSettings, rl_step
from megatron_resrl.training.session import Session, open_session
from megatron_resrl.training.single_pass import takes_single_pass
from megatron_resrl.training.stage import Stage, StageState
from megatron_resrl.training.starting_point import StartingPoint


def train(recipe: Recipe) -> None:
    """Trains the policy of a checked recipe; continues where an earlier run of it stopped.

    What it writes below `recipe.output_dir` is in docs/outputs.md.

    Raises:
        InputError: On all ranks: a file cannot be used, or the directory is another run's.
        NothingLeftToDo: All steps are done.
        DiskFull: A file could not be written.
        Interrupted: A signal asked the run to end before its last step; it is saved.
        NotFinite: Gradients were not finite, see `optimizer.non_finite`.
    """
    with open_session(recipe) as session:
        questions, identity = run_on_every_rank(lambda: _read(recipe))
        start = session.find_start(identity)
        with open_worker(
            recipe,
            trainable=True,
            tokenizer=questions.tokenizer,
            judged=questions.judged(recipe.reward),
        ) as worker:
            # Before a checkpoint is loaded: the policy has the weights of `model.path`.
            others = other_models(algorithm_of(recipe), recipe.teacher, worker.policy)
            session.attempts(
                start,
                lambda start: _train(recipe, session, questions, identity, start, worker, others),
            )


def _read(recipe: Recipe) -> tuple[Questions, Identity]:
    """The questions of a run, and what gives the run its meaning."""
    sets = evaluation_sets(
        recipe.evaluation, recipe.data, recipe.reward, recipe.rollout.max_response_length
    )
    prompts_per_step = recipe.rollout.prompts_per_step
    questions = read_questions(recipe.model, recipe.data, sets, prompts_per_step, recipe.seed)
    return questions, rl_identity(recipe, questions)


def _train(
    recipe: Recipe,
    session: Session,
    questions: Questions,
    identity: Identity,
    start: StartingPoint,
    worker: RolloutWorker,
    others: OtherModels,
) -> None:
    policy, timers = worker.policy, session.timers
    resumed = session.resume(start, policy)
    rollbacks = len(session.rollbacks)
    log = RolloutLog(
        Path(recipe.output_dir) / "rollouts",
        run_identity(recipe, identity.digest()),
        rollbacks=rollbacks,
    )
    seed = sampling_seed(recipe.seed, rollbacks)
    collector = build_collector(
        recipe.rollout,
        recipe.reward,
        worker,
        log,
        timers,
        seed=seed,
        keep_rollouts=recipe.checkpoint.keep_rollouts,
    )
    rollouts = _rollouts(recipe, questions.prompts, worker, collector, resumed, start)
    algorithm = algorithm_of(recipe)
    weighting = _weighting(worker, recipe)
    single = takes_single_pass(weighting, recipe)
    settings = StepSettings.from_recipe(recipe, single_pass=single)
    observers = standard_observers(
        recipe.resrl, temperature=recipe.rollout.temperature, seed=recipe.seed, timers=timers
    )
    without_signal = WithoutSignal(recipe.rollout.max_response_length)

    def state() -> StageState:
        return StageState(rollouts.sampler.state_dict(), {"in_flight": rollouts.in_flight()})

    kept = responses_folder(recipe.evaluation, recipe.output_dir)
    sets = questions.evaluation_sets
    stage = Stage(
        headline="reward/mean",
        state=state,
        phases=PHASES,
        evaluate=lambda step: evaluate_sets(
            sets, worker, recipe.seed, step, kept, recipe.evaluation.response_format
        ),
        evaluate_every=recipe.evaluation.every,
        on_saved=lambda step: log.discard(until=step),
    )
    with session.run(stage, policy, identity, resumed) as run:
        for step in run.steps():
            rollout = rollouts.next(step)
            samples = rollout.samples
            batch = RolloutBatch.from_samples(samples)
            outcome = rl_step(
                policy, algorithm, weighting, batch, settings, step, timers, observers, others
            )
            without_signal.count(step, samples, outcome.left_out)
            with phase(timers, "sync"):
                synced = worker.engine.update_weights(step)
            run.finish_step(
                step,
                outcome.metrics | rollout.metrics | synced,
                finite=outcome.finite,
                batch=partial(map, complete, samples),
                examples=[readable(each) for each in samples[: recipe.logging.sample_responses]],
            )


def _rollouts(
    recipe: Recipe,
    prompts: Sequence[Prompt],
    worker: RolloutWorker,
    collector: Collector,
    resumed: TrainerState | None,
    start: StartingPoint,
) -> RolloutQueue:
    """The rollouts of the steps to come, where the run that is continued left off."""
    rollout = recipe.rollout
    in_flight: list[list[int]] = []
    sampler = PromptSampler(
        len(prompts), rollout.prompts_per_step, recipe.seed, recipe.data.shuffle
    )
    if resumed:
        worker.engine.update_weights(resumed.step)
        if not start.new_data:
            sampler.load_state_dict(resumed.sampler)
            in_flight = prompts_in_flight(resumed.extra)
    return RolloutQueue(
        collector, prompts, sampler, steps=recipe.steps, rollout=rollout, in_flight=in_flight
    )


def sampling_seed(seed: int, rollbacks: int) -> int:
    """The run's seed of responses, another one after each rollback.

    A step that is done again draws other responses also where the data begin anew and its prompts
    are the same. Numpy's `SeedSequence` takes integers of any size.
    """
    return seed + (rollbacks << 64)


def prompts_in_flight(extra: Mapping[str, Any]) -> list[list[int]]:
    """Prompts of the steps whose rollouts a checkpoint's run had begun, by step, as indices.

    Args:
        extra: `TrainerState.extra`; checkpoints of earlier versions have the key `begun`.
    """
    return extra.get("in_flight", extra.get("begun", []))


def _weighting(worker: RolloutWorker, recipe: Recipe) -> TokenWeighting:
    markers = None
    if recipe.resrl.mask_think:
        markers = think_marker_ids(worker.tokenizer, recipe.resrl.think_markers)
    return build_weighting(
        weighting_of(recipe),
        worker.policy,
        recipe.resrl,
        recipe.rollout,
        seed=recipe.seed,
        think_markers=markers,
    )
