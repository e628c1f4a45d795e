"""One update of the policy on graded groups: advantages, weights, loss."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core import parallel_state

from megatron_resrl.algorithms import Algorithm, token_coefficients
from megatron_resrl.config.schema import Recipe
from megatron_resrl.data.balance import deal_groups
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.policy.policy import Policy, UpdateResult
from megatron_resrl.policy.schedule import is_last_stage
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.training import step_metrics
from megatron_resrl.training.phases import phase
from megatron_resrl.training.scoring import Scored, score_samples
from megatron_resrl.training.updating import Targets, update_policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepOutcome:
    """What one step did, the same on all ranks."""

    metrics: dict[str, float]
    finite: bool
    """False: at least one update was skipped because a gradient was not finite."""


def rl_step(
    policy: Policy,
    algorithm: Algorithm,
    samples: Sequence[Sample],
    recipe: Recipe,
    step: int,
    timers: PhaseTimers,
) -> StepOutcome:
    """Takes the optimizer steps of one batch of graded groups. Collective.

    Args:
        policy: Updated in place.
        algorithm: Turns rewards and token weights into advantages.
        samples: All groups of the step, whole, the same on all ranks.
        recipe: Settings.
        step: Number of the step, a key of random choices.
        timers: Phases are timed here.
    """
    rewards = torch.tensor([sample.reward for sample in samples], dtype=torch.float64)
    scores = torch.tensor([sample.score for sample in samples], dtype=torch.float64)
    group = torch.tensor([sample.group for sample in samples])
    advantages = algorithm.sample_advantages(rewards, scores, group)
    positive = algorithm.positive(scores, advantages)

    mini_batches = split_into_mini_batches(samples, recipe.algorithm.updates_per_step)
    shares = [own_share(samples, mini_batch) for mini_batch in mini_batches]
    mine = [index for share in shares for index in share]
    with phase(timers, "scoring"):
        scored = score_samples(
            policy,
            [samples[index] for index in mine],
            positive[mine],
            recipe,
            step,
            timers,
            weigh=algorithm.needs_hidden_states,
        )

    updates: list[UpdateResult] = []
    sums: list[dict[str, float]] = []
    row = {index: place for place, index in enumerate(mine)}
    for mini_batch, share in zip(mini_batches, shares, strict=True):
        if not advantages[mini_batch].any():
            logger.warning(
                "step %d: every group of a mini-batch of %d responses has equal rewards; "
                "there is nothing to learn from it and its update is left out",
                step,
                len(mini_batch),
            )
            continue
        # A response without advantage has no gradient: it counts in the denominators only.
        taught = [index for index in share if advantages[index] != 0]
        rows = [row[index] for index in taught]
        targets = Targets(
            advantages=advantages[taught],
            positive=positive[taught],
            coefficients=_coefficients(samples, mini_batch, taught, recipe),
            old_log_probs=scored.log_probs[rows],
            token_weights=scored.token_weights[rows],
        )
        with phase(timers, "update"):
            update, token_sums = update_policy(
                policy, algorithm, [samples[index] for index in taught], targets, recipe
            )
        updates.append(update)
        sums.append(token_sums)

    replicas = _gather_reports([samples[index] for index in mine], scored, sums)
    metrics = step_metrics.of_samples(samples, advantages)
    metrics |= step_metrics.of_replicas(replicas)
    metrics |= step_metrics.of_updates(updates, len(mini_batches))
    return StepOutcome(metrics, all(update.applied for update in updates))


def split_into_mini_batches(samples: Sequence[Sample], count: int) -> list[list[int]]:
    """Cuts the step's groups, in order, into `count` mini-batches of whole groups.

    Returns:
        Sample indices of each mini-batch.
    """
    groups = max(sample.group for sample in samples) + 1
    per_batch = groups // count
    return [
        [
            index
            for index, sample in enumerate(samples)
            if batch * per_batch <= sample.group < (batch + 1) * per_batch
        ]
        for batch in range(count)
    ]


def own_share(samples: Sequence[Sample], mini_batch: Sequence[int]) -> list[int]:
    """The sample indices of a mini-batch that this data-parallel replica trains on."""
    members: dict[int, list[int]] = {}
    for index in mini_batch:
        members.setdefault(samples[index].group, []).append(index)
    groups = list(members.values())
    tokens = [sum(len(samples[index].tokens) for index in group) for group in groups]
    hands = deal_groups(tokens, parallel_state.get_data_parallel_world_size())
    hand = hands[parallel_state.get_data_parallel_rank()]
    return [index for group in hand for index in groups[group]]


def _coefficients(
    samples: Sequence[Sample], mini_batch: Sequence[int], taught: Sequence[int], recipe: Recipe
) -> torch.Tensor:
    """[B] what a token of each own response counts, with the mini-batch's global denominators."""
    lengths = {index: len(samples[index].response.token_ids) for index in mini_batch}
    return token_coefficients(
        torch.tensor([lengths[index] for index in taught], dtype=torch.int64),
        aggregation=recipe.algorithm.aggregation,
        global_tokens=sum(lengths.values()),
        global_responses=len(mini_batch),
    )


def _gather_reports(
    samples: Sequence[Sample], scored: Scored, sums: list[dict[str, float]]
) -> list[step_metrics.ReplicaReport]:
    """What the last stages of all replicas know, on every rank."""
    speaks = is_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
    report = step_metrics.report_replica(samples, scored, sums) if speaks else None
    return [replica for replica in gather_objects(report) if replica is not None]
