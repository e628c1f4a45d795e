"""Reinforcement learning with verifiable rewards, from the first rollout to the last checkpoint.

One step: sample G responses per prompt, grade them, score their tokens and weigh those of the
wrong ones by how far they lie outside the subspace of the right ones, update the policy.
"""

from __future__ import annotations

import datetime
import logging
from pathlib import Path

import torch

from megatron_resrl.algorithms import algorithm_of
from megatron_resrl.checkpoint import (
    CheckpointSaver,
    Retention,
    TrainerState,
    load_checkpoint,
)
from megatron_resrl.config.load import recipe_yaml
from megatron_resrl.config.schema import Recipe
from megatron_resrl.data.sampler import PromptSampler
from megatron_resrl.data.think import think_marker_ids
from megatron_resrl.evaluation.run import evaluate_sets
from megatron_resrl.observe.phases import PHASES, phase
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.disk import full_disk_named
from megatron_resrl.platform.phases import begin_step
from megatron_resrl.policy.sizes import checkpoint_bytes
from megatron_resrl.rollout.actor import Actor, open_actor, open_ranks
from megatron_resrl.rollout.collector import Collector
from megatron_resrl.rollout.environments.metrics import episode_metrics
from megatron_resrl.rollout.log import RolloutLog
from megatron_resrl.rollout.queue import RolloutQueue
from megatron_resrl.training.beginning import Beginning, begin_run, note_finished
from megatron_resrl.training.interruption import Interruption
from megatron_resrl.training.journal import Journal
from megatron_resrl.training.not_finite import NotFiniteSteps
from megatron_resrl.training.records import dump_path
from megatron_resrl.training.rl_step import rl_step
from megatron_resrl.training.run_lock import RunLock
from megatron_resrl.training.token_weights import TokenWeigher
from megatron_resrl.training.without_signal import WithoutSignal
from megatron_resrl.weights.hugging_face import save_hf_model

logger = logging.getLogger(__name__)


def train(recipe: Recipe) -> None:
    """Trains the policy of a checked recipe; continues where an earlier run of it stopped.

    What it writes below `recipe.output_dir` is in docs/outputs.md.

    Raises:
        InputError: On all ranks: the directory is another run's, or see `begin_run`.
        NothingLeftToDo: All steps are done.
        DiskFull: A file could not be written.
        Interrupted: A signal asked the run to end before its last step; it is saved.
        NotFinite: Gradients were not finite, see `optimizer.non_finite`.
    """
    output_dir = Path(recipe.output_dir)
    with (
        full_disk_named(output_dir, checkpoint_bytes(recipe)),
        Interruption(output_dir, recipe.checkpoint.preemption_exit_code) as interruption,
        open_ranks(recipe),
        RunLock(output_dir) as lock,
    ):
        beginning = begin_run(recipe)
        tokenizer = beginning.tokenizer
        prompts = [*beginning.prompts, *(p for s in beginning.evaluation_sets for p in s.prompts)]
        with open_actor(recipe, trainable=True, tokenizer=tokenizer, prompts=prompts) as actor:
            _train(recipe, beginning, actor, interruption, lock)


def _train(
    recipe: Recipe, beginning: Beginning, actor: Actor, interruption: Interruption, lock: RunLock
) -> None:
    output_dir = Path(recipe.output_dir)
    algorithm = algorithm_of(recipe)
    sampler = PromptSampler(
        len(beginning.prompts), recipe.rollout.prompts_per_step, recipe.seed, recipe.data.shuffle
    )
    resumed = _resume(beginning, actor, sampler)
    first = resumed.step + 1 if resumed else 1
    weigher = _weigher(recipe, actor) if algorithm.needs_hidden_states else None
    rollout_log = RolloutLog(recipe, beginning.identity.digest())
    timers = PhaseTimers(torch.cuda.synchronize if torch.cuda.is_available() else None)
    collector = Collector(recipe, actor, rollout_log, timers)
    begun = resumed.extra.get("begun", ()) if resumed and not beginning.new_data else ()
    rollouts = RolloutQueue(recipe, collector, beginning.prompts, sampler, begun)
    not_finite = NotFiniteSteps(recipe.optimizer)
    without_signal = WithoutSignal(recipe.rollout.max_response_length)

    def evaluate(step: int) -> dict[str, float]:
        with phase(timers, "evaluation"):
            return evaluate_sets(beginning.evaluation_sets, actor, recipe, step)

    with (
        Journal(recipe, resume_step=first - 1 if first > 1 else None) as journal,
        _saver(recipe, actor, rollout_log) as saver,
    ):
        journal.write_recipe(recipe_yaml(recipe))
        if first == 1:
            journal.log(0, evaluate(0))
        timers.collect()
        journal.begin_steps()
        for step in range(first, recipe.steps + 1):
            begin_step(step)
            lock.confirm()
            rollout = rollouts.next(step)
            samples = rollout.samples
            with phase(timers, "rollout"):
                actor.engine.sleep()
            outcome = rl_step(actor.policy, algorithm, weigher, samples, recipe, step, timers)
            without_signal.count(step, samples, outcome.left_out)
            with phase(timers, "sync"):
                synced = actor.engine.update_weights(step)

            saver.poll()
            metrics = outcome.metrics | rollout.metrics | synced | _times(timers, saver)
            metrics["data/epoch"] = sampler.epochs
            if recipe.rollout.environment is not None:
                metrics |= episode_metrics([sample.response for sample in samples])
            if not outcome.finite:
                journal.dump(step, samples)
            if _due(step, recipe.evaluation.every, recipe.steps):
                metrics |= evaluate(step)
            journal.log(step, metrics, samples)
            not_finite.count(step, outcome.finite, dump_path(output_dir, step))
            interrupted = step < recipe.steps and interruption.requested()
            if interrupted or _due(step, recipe.checkpoint.save_every, recipe.steps):
                extra = {"contents": beginning.identity.contents, "begun": rollouts.begun()}
                position = sampler.state_dict()
                saver.save(TrainerState(step, position, extra, metrics, recipe_yaml(recipe)))
            if interrupted:
                interruption.end(step, saver.wait())
            timers.collect()
    if recipe.checkpoint.export_hf:
        save_hf_model(
            actor.policy.modules,
            actor.policy.hf_config,
            output_dir / "hf",
            tokenizer=recipe.model.tokenizer_path,
        )
    note_finished(recipe, max(first - 1, recipe.steps))


def _saver(recipe: Recipe, actor: Actor, rollout_log: RolloutLog) -> CheckpointSaver:
    settings = recipe.checkpoint
    retention = Retention(
        settings.keep_last, settings.keep_every, settings.best_metric, settings.best_mode
    )
    return CheckpointSaver(
        Path(recipe.output_dir),
        actor.policy,
        retention,
        background=settings.async_save,
        timeout=datetime.timedelta(minutes=recipe.parallel.timeout_minutes),
        on_saved=lambda step: rollout_log.discard(until=step),
    )


def _resume(beginning: Beginning, actor: Actor, sampler: PromptSampler) -> TrainerState | None:
    """Loads the checkpoint that the run continues, if any. Returns where the trainer was."""
    checkpoint = beginning.checkpoint
    if checkpoint is None:
        return None
    state = load_checkpoint(checkpoint, actor.policy)
    if not beginning.new_data:
        sampler.load_state_dict(state.sampler)
    actor.engine.update_weights(state.step)
    logger.info("resumed after step %d from %s", state.step, checkpoint)
    return state


def _weigher(recipe: Recipe, actor: Actor) -> TokenWeigher:
    markers = None
    if recipe.resrl.mask_think:
        markers = think_marker_ids(actor.tokenizer, recipe.resrl.think_markers)
    return TokenWeigher(actor.policy, recipe, think_markers=markers)


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


def _times(timers: PhaseTimers, saver: CheckpointSaver) -> dict[str, float]:
    """`time/<phase>` of the step just done, every phase present, and `time/step`, their sum.

    Apart from that, what the checkpoints since the step before it took: `time/checkpoint_stolen`
    from training, `time/checkpoint_write` beside it.
    """
    seconds = dict.fromkeys(PHASES, 0.0) | timers.collect()
    times = {f"time/{name}": value for name, value in seconds.items()}
    times["time/step"] = sum(seconds.values())
    return times | {f"time/checkpoint_{name}": value for name, value in saver.times().items()}
