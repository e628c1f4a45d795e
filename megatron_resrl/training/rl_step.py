"""One step of ResRL (arXiv 2605.00380): graded groups -> weights of tokens -> updates."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist
from torch import Tensor

from megatron_resrl.algorithms import Aggregation, Algorithm
from megatron_resrl.algorithms.kl_penalty import REFERENCE
from megatron_resrl.config.schema import CorrectionConfig, Recipe
from megatron_resrl.diagnostics.observer import StepObservers, StepStart, StepState
from megatron_resrl.observe.phases import phase
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.phases import progress
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.prefixes import FedLength
from megatron_resrl.policy.results import OnFinalStates
from megatron_resrl.policy.token_budget import MicroBatchLimit
from megatron_resrl.rollout.batch import RolloutBatch, TrainingBatch
from megatron_resrl.token_weighting.protocol import TokenWeighting, TokenWeights
from megatron_resrl.training.importance import importance_weights
from megatron_resrl.training.kl_rewards import RewardPenalties, reward_penalties
from megatron_resrl.training.other_models import OtherModels
from megatron_resrl.training.scoring import PassSettings, Scores, score_batch
from megatron_resrl.training.sharing import (
    MiniBatch,
    balanced_mini_batches,
    loss_coefficients,
    sequence_cost,
    shard_groups,
    split_into_mini_batches,
)
from megatron_resrl.training.single_pass import update_in_single_pass
from megatron_resrl.training.updating import Targets, update_policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepSettings:
    """What a step depends on, besides policy, algorithm, weighting and batch."""

    updates_per_step: int
    """Mini-batches of whole groups, one optimizer step each."""
    mini_batches: Literal["as_sampled", "balanced"]
    """Which groups share one."""
    aggregation: Aggregation
    """How the losses of tokens are averaged."""
    refresh_weights: bool
    """Weigh tokens anew with the current policy before each update but the first."""
    correction: CorrectionConfig
    """Importance weights, and the gates on the mismatch of engine and trainer."""
    passes: PassSettings
    """Micro-batches and temperature of scoring passes and updates."""
    max_response_length: int
    """Most tokens that a response can have."""
    single_pass: bool = False
    """The update is the scoring pass, too; see `takes_single_pass`."""

    @classmethod
    def from_recipe(cls, recipe: Recipe, *, single_pass: bool = False) -> StepSettings:
        """The settings of a recipe that a step reads.

        Args:
            recipe: Of the run.
            single_pass: See `takes_single_pass`.
        """
        return cls(
            recipe.algorithm.updates_per_step,
            recipe.algorithm.mini_batches,
            recipe.algorithm.aggregation,
            recipe.resrl.refresh == "minibatch",
            recipe.correction,
            PassSettings(
                recipe.algorithm.micro_batch_size,
                recipe.rollout.temperature,
                recipe.model.path,
                recipe.algorithm.max_tokens_per_micro_batch,
                recipe.algorithm.max_tokens_per_scoring_micro_batch,
            ),
            recipe.rollout.max_response_length,
            single_pass,
        )


@dataclass(frozen=True)
class StepOutcome:
    """What one step did, the same on all ranks."""

    metrics: dict[str, float]
    finite: bool
    """False: at least one update was skipped because a gradient was not finite."""
    left_out: list[list[int]]
    """Rows of the batch of each update that was left out: no response had a loss."""


def rl_step(
    policy: Policy,
    algorithm: Algorithm,
    weighting: TokenWeighting,
    batch: RolloutBatch,
    settings: StepSettings,
    step: int,
    timers: PhaseTimers,
    observers: StepObservers,
    others: OtherModels | None = None,
) -> StepOutcome:
    """Takes the optimizer steps of one batch of graded groups. Collective.

    Args:
        policy: Updated in place.
        algorithm: Turns rewards into advantages, and tokens into a loss.
        weighting: Weighs the tokens of incorrect responses.
        batch: All groups of the step, whole, the same on all ranks.
        settings: See there.
        step: Number of the step, a key of random choices.
        timers: Phases are timed here.
        observers: See the step's parts, and give its metrics.
        others: Models that score the responses, too; those that the algorithm needs.

    Raises:
        MismatchTooLarge: On all ranks, before the first update, see `correction.stop_kl`.
    """
    # What the KL divergence takes off rewards; A_i = (r_i - mean) / std of each group, which
    # responses are positive, and c_i of each mini-batch; then every data-parallel replica takes its
    # whole groups.
    others, penalties = dict(others or {}), None
    if algorithm.kl is not None and algorithm.kl.place == "reward":
        with phase(timers, "scoring"):
            penalties = reward_penalties(
                algorithm.kl, batch, policy, others.pop(REFERENCE), settings.passes, timers
            )
    graded, mini_batches = _with_loss(algorithm, batch, settings, penalties)
    limit = settings.passes.limit(policy)
    lengths = limit.lengths_of(graded)
    share = shard_groups(graded, mini_batches, sequence_cost(policy), lengths)
    local = graded.select(share.rows)
    _warn_of_long_responses(graded, lengths, limit, step)
    streams = _score_by_others(others, local, settings.passes, timers)

    score_again = functools.partial(score_batch, policy, settings=settings.passes, timers=timers)
    start = StepStart(step, policy, weighting, graded, local, score_again, streams)
    if settings.single_pass and graded.has_loss.any():
        state, metrics = update_in_single_pass(
            start, algorithm, settings.correction, settings.passes, observers, timers
        )
    else:
        state, metrics = _update_after_scoring(
            start, algorithm, share.mini_batches, settings, observers, timers
        )
    metrics |= {"step/imbalance": share.imbalance} | observers.after_updates(state)
    if penalties is not None:
        metrics |= penalties.metrics
    return StepOutcome(metrics, all(update.applied for update in state.updates), state.left_out)


def _score_by_others(
    others: OtherModels, local: RolloutBatch, settings: PassSettings, timers: PhaseTimers
) -> dict[str, Tensor]:
    """[local, T] log-probabilities of this replica's responses under each. Collective."""
    if not others:
        return {}
    with phase(timers, "scoring"):
        return {name: each.log_probs(local, settings, timers) for name, each in others.items()}


def _update_after_scoring(
    start: StepStart,
    algorithm: Algorithm,
    parts: Sequence[MiniBatch],
    settings: StepSettings,
    observers: StepObservers,
    timers: PhaseTimers,
) -> tuple[StepState, dict[str, float]]:
    """Pass 1 over all responses, then an update of each mini-batch. Collective."""
    policy, weighting, local, step = start.policy, start.weighting, start.local, start.step
    with phase(timers, "scoring"):
        watch = observers.before_scoring(start)
        scores, weights = _score(policy, weighting, local, settings.passes, step, timers, watch)
        importance = importance_weights(local, scores.log_probs, settings.correction, step)
    state = StepState(**vars(start), scores=scores, token_weights=weights)
    observers.after_scoring(state)

    for number, mini_batch in enumerate(parts, start=1):
        if not start.batch.has_loss[mini_batch.indices].any():
            state.left_out.append(mini_batch.indices)
            policy.leave_out_update()
            continue
        if settings.refresh_weights and state.updates:
            with phase(timers, "scoring"):
                own = local.select(mini_batch.rows)
                _, later = _score(policy, weighting, own, settings.passes, step, timers)
            weights = state.token_weights = weights.replaced(mini_batch.rows, later)
        # Pass 2: the algorithm's loss on A_it = w_it A_i (positives: lambda A_i). A response
        # without a loss has no gradient: it counts in the denominators only.
        targets = Targets.of(local, scores, weights.weights, importance.weights, start.streams)
        rows = [row for row in mini_batch.rows if local.has_loss[row]]
        with phase(timers, "update"):
            progress(number, len(parts))
            update, sums, fed = update_policy(
                policy, algorithm, local, rows, targets, settings.passes
            )
        state.updates.append(update)
        state.sums.append(sums)
        state.fed.append(fed)
    return state, importance.metrics | {"step/passes": 2.0 if state.updates else 1.0}


def _warn_of_long_responses(
    batch: TrainingBatch, lengths: Sequence[FedLength], limit: MicroBatchLimit, step: int
) -> None:
    """Says which response is above the token budget, where one is: it passes alone."""
    longest = max(range(len(lengths)), key=lambda row: lengths[row].tokens)
    if dist.get_rank() == 0 and not limit.allows([lengths[longest]]):
        logger.warning(
            "step %d: %s has %d tokens with its prompt, above "
            "algorithm.max_tokens_per_micro_batch = %s; it has a micro-batch of its own",
            *(step, batch.name(longest), lengths[longest].tokens, limit.tokens),
        )


def _score(
    policy: Policy,
    weighting: TokenWeighting,
    batch: TrainingBatch,
    settings: PassSettings,
    step: int,
    timers: PhaseTimers,
    watch: OnFinalStates | None = None,
) -> tuple[Scores, TokenWeights]:
    """Pass 1, without gradient: log pi_old(o_it), and the weights w_it from hidden states h_it.

    ResRL's weighting, group by group: x_it = LayerNorm(h_it); mu and V from the tokens of correct
    responses (SVD); e_it = ||(I - V V^T)(x_it - mu)||^2 / d of the incorrect ones; w_it =
    xi + (1 - xi) clamp((e_it - q_lo) / (q_hi - q_lo), 0, 1).
    """
    observed = weighting.begin(batch, step)
    scores = score_batch(policy, batch, settings, timers, weighting=observed, on_final_states=watch)
    return scores, observed.finish()


def _with_loss(
    algorithm: Algorithm,
    batch: RolloutBatch,
    settings: StepSettings,
    penalties: RewardPenalties | None,
) -> tuple[TrainingBatch, list[list[int]]]:
    """The batch with what the loss makes of each response, and the rows of each mini-batch.

    An excluded response's reward stays in its group's statistics: only its own loss is left out.
    """
    count = batch.num_generated_tokens
    rewards = algorithm.calibrated_rewards(
        batch.rewards if penalties is None else batch.rewards - penalties.of_responses,
        batch.scores,
        batch.group_ids,
        batch.rollout_log_probs.sum(1) / count.clamp(min=1),
    )
    advantages = algorithm.sample_advantages(rewards, batch.scores, batch.group_ids)
    tokens = count.masked_fill(batch.excluded, 0)
    advantages = algorithm.relate_over_step(advantages, tokens)
    positive = algorithm.positive(batch.scores, advantages) & ~batch.excluded
    advantages = advantages.masked_fill(batch.excluded, 0.0)
    has_loss = algorithm.has_loss(advantages, positive) & ~batch.excluded
    groups, updates = batch.group_ids, settings.updates_per_step
    if settings.mini_batches == "balanced":
        mini_batches = balanced_mini_batches(groups, positive, has_loss, updates)
    else:
        mini_batches = split_into_mini_batches(groups, updates)
    graded = TrainingBatch(
        **vars(batch),
        advantages=advantages,
        positive=positive,
        has_loss=has_loss,
        coefficients=loss_coefficients(
            batch,
            mini_batches,
            settings.aggregation,
            algorithm.in_denominator(positive),
            settings.max_response_length,
        ),
    )
    return graded, mini_batches
