"""One update of the policy on graded groups: advantages, weights, loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_resrl.algorithms import Algorithm, token_coefficients
from megatron_resrl.config.schema import Recipe
from megatron_resrl.observe.phases import phase
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.phases import progress
from megatron_resrl.policy.policy import Policy, UpdateResult
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.training import step_metrics
from megatron_resrl.training.correcting import correct
from megatron_resrl.training.diagnosis import InterferenceSample, displaced_likelihood
from megatron_resrl.training.scoring import Scored, score_samples
from megatron_resrl.training.sharing import own_share, split_into_mini_batches
from megatron_resrl.training.token_weights import TokenWeigher
from megatron_resrl.training.updating import LossSums, Targets, update_policy


@dataclass(frozen=True)
class StepOutcome:
    """What one step did, the same on all ranks."""

    metrics: dict[str, float]
    finite: bool
    """False: at least one update was skipped because a gradient was not finite."""
    left_out: list[list[int]]
    """Indices of the samples of each update that was left out: no response had a loss."""


def rl_step(
    policy: Policy,
    algorithm: Algorithm,
    weigher: TokenWeigher | None,
    samples: Sequence[Sample],
    recipe: Recipe,
    step: int,
    timers: PhaseTimers,
) -> StepOutcome:
    """Takes the optimizer steps of one batch of graded groups. Collective.

    Args:
        policy: Updated in place.
        algorithm: Turns rewards and token weights into advantages.
        weigher: Weighs tokens by their hidden states; None: all weigh 1.
        samples: All groups of the step, whole, the same on all ranks.
        recipe: Settings.
        step: Number of the step, a key of random choices.
        timers: Phases are timed here.

    Raises:
        MismatchTooLarge: On all ranks, before the first update, see `correction.stop_kl`.
    """
    rewards = torch.tensor([sample.reward for sample in samples], dtype=torch.float64)
    scores = torch.tensor([sample.score for sample in samples], dtype=torch.float64)
    group = torch.tensor([sample.group for sample in samples])
    masked = torch.tensor([sample.masked for sample in samples])
    # A masked reward stays in its group's mean: only what its own response would teach is left out.
    advantages = algorithm.sample_advantages(rewards, scores, group)
    positive = algorithm.positive(scores, advantages) & ~masked
    advantages = advantages.masked_fill(masked, 0.0)
    has_loss = algorithm.has_loss(advantages, positive) & ~masked

    loss_shares = _loss_shares(samples, advantages, recipe)
    mini_batches = split_into_mini_batches(samples, recipe.algorithm.updates_per_step)
    shares = [own_share(samples, each) for each in mini_batches]
    mine = [index for share in shares for index in share]
    everyones = [index for mini_batch in mini_batches for index in mini_batch]
    diagnose = recipe.resrl.diagnose_every > 0 and step % recipe.resrl.diagnose_every == 0
    drawn = None
    if diagnose:
        drawn = InterferenceSample(policy, samples, mine, positive, recipe, step)

    def score(wanted: list[int], own: list[int], *, draw: bool) -> Scored:
        weighing = weigher and weigher.begin(samples, wanted, own, positive, step, loss_shares)
        collect = drawn.collect if drawn and draw else None
        return score_samples(
            policy, samples, own, recipe, timers, weighing=weighing, on_final_states=collect
        )

    with phase(timers, "scoring"):
        scored = score(everyones, mine, draw=True)
        own_samples = [samples[index] for index in mine]
        corrected = correct(own_samples, scored.log_probs, recipe.correction, step)
    diagnosed: dict[str, float] = {}
    if drawn:
        with phase(timers, "diagnosis"):
            diagnosed = drawn.metrics(mine, scored.token_weights)

    left_out: list[list[int]] = []
    updates: list[UpdateResult] = []
    sums: list[LossSums] = []
    row = {index: place for place, index in enumerate(mine)}
    parts = zip(mini_batches, shares, strict=True)
    for number, (mini_batch, share) in enumerate(parts, start=1):
        if not has_loss[mini_batch].any():
            left_out.append(mini_batch)
            policy.leave_out_update()
            continue
        token_weights = scored.token_weights[[row[index] for index in share]]
        if weigher and updates and recipe.resrl.refresh == "minibatch":
            with phase(timers, "scoring"):
                again = score(mini_batch, share, draw=False)
            token_weights = again.token_weights
            scored = scored.weighed_again(again)
        # A response without a loss has no gradient: it counts in the denominators only.
        places = [place for place, index in enumerate(share) if has_loss[index]]
        taught = [share[place] for place in places]
        taught_rows = [row[index] for index in taught]
        targets = Targets(
            advantages=advantages[taught],
            positive=positive[taught],
            coefficients=_coefficients(samples, mini_batch, taught, recipe),
            old_log_probs=scored.log_probs[taught_rows],
            token_weights=token_weights[places],
            rollout_log_probs=corrected.rollout_log_probs[taught_rows],
            importance_weights=corrected.importance_weights[taught_rows],
            extra={"old_entropy": scored.entropy[taught_rows]},
        )
        with phase(timers, "update"):
            progress(number, len(mini_batches))
            update, token_sums = update_policy(
                policy,
                algorithm,
                [samples[index] for index in taught],
                targets,
                micro_batch_size=recipe.algorithm.micro_batch_size,
                temperature=recipe.rollout.temperature,
            )
        updates.append(update)
        sums.append(token_sums)

    metrics = step_metrics.of_samples(samples, advantages) | corrected.metrics
    replicas = step_metrics.gather_reports(own_samples, scored, sums)
    metrics |= step_metrics.of_replicas(replicas, spectrum=diagnose)
    metrics |= step_metrics.of_updates(updates, len(left_out))
    if diagnose:
        with phase(timers, "diagnosis"):
            diagnosed |= displaced_likelihood(
                policy, samples, mine, positive, scored, recipe, timers
            )
    metrics |= diagnosed
    return StepOutcome(metrics, all(update.applied for update in updates), left_out)


def _loss_shares(
    samples: Sequence[Sample], advantages: torch.Tensor, recipe: Recipe
) -> torch.Tensor:
    """[samples] |A_i| c_i, what a token of each response counts, up to a factor of the step."""
    counted = [index for index, sample in enumerate(samples) if not sample.masked]
    shares = torch.zeros_like(advantages)
    if counted:
        coefficients = _coefficients(samples, counted, counted, recipe)
        shares[counted] = advantages[counted].abs() * coefficients
    return shares


def _coefficients(
    samples: Sequence[Sample], mini_batch: Sequence[int], taught: Sequence[int], recipe: Recipe
) -> torch.Tensor:
    """[B] what a token of each own response counts, with the mini-batch's global denominators.

    Masked responses are in no denominator, as in verl's `agg_loss`: the loss is a mean over what it
    is made of.
    """
    lengths = {
        index: samples[index].response.num_generated_tokens
        for index in mini_batch
        if not samples[index].masked
    }
    return token_coefficients(
        torch.tensor([lengths[index] for index in taught], dtype=torch.int64),
        aggregation=recipe.algorithm.aggregation,
        global_tokens=sum(lengths.values()),
        global_responses=len(lengths),
    )
