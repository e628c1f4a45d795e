"""GRPO's loss and gradient against other trainers' formulas, written out here from their sources.

The batch: 3 prompts x 4 responses of 0 to 6 tokens, padded to [B, T] for the others and flat for
us. Old log-probs come from other weights of the same model, so that ratios spread widely and
clips bind on both sides.

Tolerance everywhere: float64, sums of at most 44 terms of size 10, hence 1e-12.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from megatron_resrl.algorithms import (
    get_algorithm,
    group_normalised,
    ppo_clip,
    token_coefficients,
)

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
GROUPS, SIZE, HIDDEN, VOCAB = 3, 4, 5, 11
LENGTHS = torch.tensor([6, 2, 1, 5, 3, 0, 4, 6, 2, 6, 5, 4])
LOW, HIGH = 0.2, 0.28
EPS = 1e-4
"""What both other trainers add to the standard deviation."""


@dataclass
class Batch:
    weights: torch.Tensor
    """[VOCAB, HIDDEN], leaf: the model is a linear layer and a softmax."""
    hidden: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor
    old: torch.Tensor
    rewards: torch.Tensor
    group: torch.Tensor

    def log_probs(self) -> torch.Tensor:
        """[B, T], with a graph to the weights."""
        logits = self.hidden @ self.weights.T
        return torch.log_softmax(logits, -1).gather(-1, self.tokens[..., None]).squeeze(-1)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    responses, longest = len(LENGTHS), int(LENGTHS.max())
    batch = Batch(
        weights=normal(VOCAB, HIDDEN),
        hidden=normal(responses, longest, HIDDEN),
        tokens=torch.randint(VOCAB, (responses, longest), generator=generator),
        mask=torch.arange(longest) < LENGTHS[:, None],
        old=torch.zeros(0),
        rewards=torch.tensor([1, 0, 0, 1, 0.7, 1, 0, 0, 1, 1, 1, 1], dtype=torch.float64),
        group=torch.arange(GROUPS).repeat_interleave(SIZE),
    )
    batch.old = batch.log_probs()
    batch.weights = (batch.weights + 0.7 * normal(VOCAB, HIDDEN)).requires_grad_()
    return batch


def our_loss(
    batch: Batch,
    log_probs: torch.Tensor,
    aggregation: str,
    *,
    advantages: torch.Tensor | None = None,
    dual_clip: float | None = None,
    rows: slice = slice(None),
) -> torch.Tensor:
    """The share of responses `rows` in the loss, as the trainer computes it: on flat tokens."""
    algorithm = get_algorithm("grpo", eps=EPS)
    if advantages is None:
        advantages = algorithm.sample_advantages(batch.rewards, batch.rewards, batch.group)
    coefficients = token_coefficients(
        LENGTHS[rows],
        aggregation=aggregation,
        global_tokens=int(LENGTHS.sum()),
        global_responses=len(LENGTHS),
    )
    mask = batch.mask[rows]
    sequence, _ = mask.nonzero(as_tuple=True)
    loss = ppo_clip(
        log_probs[rows][mask],
        batch.old[rows][mask],
        advantages[rows][sequence],
        clip_low=LOW,
        clip_high=HIGH,
        dual_clip=dual_clip,
    )
    return (coefficients[sequence] * loss.per_token).sum()


def trl_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """TRL 1.16, `scale_rewards="group"`: unbiased deviation of the group plus 1e-4."""
    table = rewards.view(GROUPS, SIZE)
    centred = table - table.mean(1, keepdim=True)
    return (centred / (table.std(1, unbiased=True, keepdim=True) + EPS)).flatten()


def trl_loss(
    batch: Batch,
    log_probs: torch.Tensor,
    loss_type: str,
    *,
    delta: float | None = None,
    rows: slice = slice(None),
) -> torch.Tensor:
    """TRL 1.16, `GRPOTrainer` with beta = 0 and one gradient-accumulation step.

    `delta` limits the unclipped ratio from above, whatever the sign of the advantage.
    """
    advantages = trl_advantages(batch.rewards)[rows, None]
    mask = batch.mask[rows].double()
    ratio = (log_probs[rows] - batch.old[rows]).exp()
    inside = ratio.clamp(1 - LOW, 1 + HIGH)
    if delta is not None:
        ratio = ratio.clamp(max=delta)
    loss = -torch.minimum(ratio * advantages, inside * advantages) * mask
    if loss_type == "grpo":
        return (loss.sum(1) / mask.sum(1).clamp(min=1)).mean()
    if loss_type == "bnpo":
        return loss.sum() / mask.sum()
    assert loss_type == "dapo"
    return loss.sum() / batch.mask.sum()  # tokens of all processes and accumulation steps


def assert_same(batch: Batch, ours, theirs) -> None:
    """Equal losses, gradients by log-prob and gradients by the model's weights."""
    leaf = batch.log_probs().detach().requires_grad_()
    torch.testing.assert_close(ours(leaf), theirs(leaf), **CLOSE)
    for inputs, log_probs in ((leaf, leaf), (batch.weights, batch.log_probs())):
        gradients = [
            torch.autograd.grad(loss(log_probs), inputs, retain_graph=True)[0]
            for loss in (ours, theirs)
        ]
        assert gradients[1].abs().max() > 0.01
        torch.testing.assert_close(*gradients, **CLOSE)


def test_loss_parity_batch_has_every_clip_and_an_idle_group(batch) -> None:
    advantages = group_normalised(batch.rewards, batch.group, eps=EPS)
    sequence, _ = batch.mask.nonzero(as_tuple=True)
    loss = ppo_clip(
        batch.log_probs()[batch.mask],
        batch.old[batch.mask],
        advantages[sequence],
        clip_low=LOW,
        clip_high=HIGH,
        dual_clip=3.0,
    )
    for clipped in (loss.clipped_low, loss.clipped_high, loss.dual_clipped):
        assert 0 < int(clipped.sum()) < len(sequence) / 2
    assert not advantages[-SIZE:].any()
    assert LENGTHS.min() == 0


def test_group_normalised_equals_trl(batch) -> None:
    ours = get_algorithm("grpo", eps=EPS).sample_advantages(
        batch.rewards, batch.rewards, batch.group
    )
    torch.testing.assert_close(ours, trl_advantages(batch.rewards), **CLOSE)


@pytest.mark.parametrize(
    ("aggregation", "loss_type"),
    [("sequence_mean", "grpo"), ("token_mean", "dapo"), ("token_mean", "bnpo")],
)
def test_ppo_clip_equals_trl(batch, aggregation, loss_type) -> None:
    assert_same(
        batch,
        lambda log_probs: our_loss(batch, log_probs, aggregation),
        lambda log_probs: trl_loss(batch, log_probs, loss_type),
    )


@pytest.mark.parametrize(
    ("aggregation", "loss_type"), [("sequence_mean", "grpo"), ("token_mean", "dapo")]
)
def test_loss_of_micro_batches_adds_up_to_that_of_trl(batch, aggregation, loss_type) -> None:
    parts = (slice(0, 2), slice(2, 9), slice(9, 12))

    def in_parts(log_probs: torch.Tensor) -> torch.Tensor:
        return sum(our_loss(batch, log_probs, aggregation, rows=rows) for rows in parts)

    assert_same(batch, in_parts, lambda log_probs: trl_loss(batch, log_probs, loss_type))


def test_loss_token_mean_ignores_micro_batches_unlike_bnpo(batch) -> None:
    """Mean over accumulation steps of per-step token means: not a mean over tokens."""
    log_probs = batch.log_probs().detach()
    halves = (slice(0, 6), slice(6, 12))
    accumulated = sum(trl_loss(batch, log_probs, "bnpo", rows=rows) for rows in halves) / 2
    whole = trl_loss(batch, log_probs, "bnpo")
    assert abs(accumulated - whole) > 1e-3
    ours = sum(our_loss(batch, log_probs, "token_mean", rows=rows) for rows in halves)
    torch.testing.assert_close(ours, whole, **CLOSE)


@pytest.mark.parametrize("bound", [1 + HIGH, 2.0, 3.0])
def test_ppo_clip_dual_is_delta_of_trl_above_the_upper_clip(batch, bound) -> None:
    """Above 1 + clip_high, delta only ever binds where the advantage is negative."""
    assert_same(
        batch,
        lambda log_probs: our_loss(batch, log_probs, "sequence_mean", dual_clip=bound),
        lambda log_probs: trl_loss(batch, log_probs, "grpo", delta=bound),
    )


def test_ppo_clip_dual_is_not_delta_of_trl_below_the_upper_clip() -> None:
    """Delta then replaces the upper clip of A > 0, and A < 0 runs on to 1 + clip_high.

    Dual clip leaves A > 0 alone and stops A < 0 at the bound itself.
    """
    bound = 1.1
    ratio = torch.full((2,), 2.0, dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0], dtype=torch.float64)
    trl = -torch.minimum(
        ratio.clamp(max=bound) * advantages, ratio.clamp(1 - LOW, 1 + HIGH) * advantages
    )
    ours = ppo_clip(
        ratio.log(), torch.zeros(2).double(), advantages, clip_high=HIGH, dual_clip=bound
    )
    assert trl.tolist() == pytest.approx([-1.1, 1.28], rel=1e-15)
    assert ours.per_token.tolist() == pytest.approx([-1.28, 1.1], rel=1e-15)  # rounding of exp


def megatron_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Megatron-RL, `calculate_grpo_advantages`, one turn: *population* deviation plus 1e-4."""
    table = rewards.view(GROUPS, SIZE)
    deviation = ((table - table.mean(1, keepdim=True)) ** 2).mean(1, keepdim=True).sqrt()
    return ((table - table.mean(1, keepdim=True)) / (deviation + EPS)).flatten()


def megatron_loss(
    batch: Batch,
    log_probs: torch.Tensor,
    *,
    kl_beta: float = 0.0,
    reference: torch.Tensor | None = None,
    engine: torch.Tensor | None = None,
    truncation: float | None = None,
) -> torch.Tensor:
    """Megatron-RL, `calculate_grpo_loss` and `loss_func`: token sum over the number of tokens.

    Times exp(old - engine), limited from above, when the engine's log-probs are given; plus
    kl_beta times the k3 estimator of the distance to the reference. (Its entropy term, weight 0
    here, is p log p of the sampled token only.)
    """
    advantages = megatron_advantages(batch.rewards)[:, None]
    ratio = (log_probs - batch.old).exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - LOW, 1 + HIGH) * advantages)
    if engine is not None:
        loss = loss * (batch.old - engine).exp().clamp(max=truncation)
    if reference is not None:
        gap = reference - log_probs
        loss = loss + kl_beta * (gap.exp() - gap - 1)
    return (loss * batch.mask).sum() / batch.mask.sum()


def test_advantages_are_those_of_megatron_rl_up_to_the_std(batch) -> None:
    """s_population = s sqrt((n - 1) / n): another eps, and a factor."""
    factor = math.sqrt(SIZE / (SIZE - 1))
    ours = factor * group_normalised(batch.rewards, batch.group, eps=factor * EPS)
    torch.testing.assert_close(ours, megatron_advantages(batch.rewards), **CLOSE)


def test_loss_and_gradient_equal_those_of_megatron_rl(batch) -> None:
    advantages = megatron_advantages(batch.rewards)
    assert_same(
        batch,
        lambda log_probs: our_loss(batch, log_probs, "token_mean", advantages=advantages),
        lambda log_probs: megatron_loss(batch, log_probs),
    )


def test_loss_differs_from_megatron_rl_by_its_extra_terms(batch) -> None:
    """Both act outside the clipped objective: a factor per token, and a sum."""
    noise = torch.randn(2, *batch.old.shape, generator=torch.Generator().manual_seed(3)).double()
    engine, reference = batch.old + 0.3 * noise[0], batch.old + 0.3 * noise[1]
    advantages = megatron_advantages(batch.rewards)
    sequence, _ = batch.mask.nonzero(as_tuple=True)

    def with_extras(log_probs: torch.Tensor) -> torch.Tensor:
        flat, old = log_probs[batch.mask], batch.old[batch.mask]
        loss = ppo_clip(flat, old, advantages[sequence], clip_low=LOW, clip_high=HIGH)
        correction = (old - engine[batch.mask]).exp().clamp(max=1.2)
        gap = reference[batch.mask] - flat
        penalty = gap.exp() - 1 - gap
        return (correction * loss.per_token + 0.04 * penalty).sum() / len(flat)

    assert_same(
        batch,
        with_extras,
        lambda log_probs: megatron_loss(
            batch, log_probs, kl_beta=0.04, reference=reference, engine=engine, truncation=1.2
        ),
    )
    leaf = batch.log_probs().detach()
    assert abs(with_extras(leaf) - megatron_loss(batch, leaf)) > 1e-3
