"""What a policy loss is made of, and what it gives back.

Shapes: n generated tokens of one micro-batch on this rank, S responses of the update on this
replica.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


def _no_other_ranks(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class LossInputs:
    """The generated tokens of one micro-batch, one after the other, padded or packed alike.

    All tokens count in the loss: what an environment wrote, padding and masked responses are not
    among them. Under context parallelism they are this rank's pieces of the responses. All tensors
    but `log_probs` (and `entropy`, see there) are constants.
    """

    log_probs: Tensor
    """[n] fp32, differentiable: under the policy that is being updated."""
    old_log_probs: Tensor
    """[n] fp32: under the policy before the step's first update."""
    rollout_log_probs: Tensor
    """[n] fp32: under the distribution that the engine sampled from."""
    advantages: Tensor
    """[n] fp32: of the tokens, from `Algorithm.token_advantages`."""
    token_weights: Tensor
    """[n] fp32, from `algorithm.weighting`: 1 where no weight applies; `advantages` have them
    already."""
    positive: Tensor
    """[n] bool: whether the token's response is to be reinforced."""
    coefficients: Tensor
    """[n] fp32: c_i of the token's response (`token_coefficients`), so that sum c_i x is the mean
    of x over the mini-batch, in the way of `algorithm.aggregation`."""
    importance_weights: Tensor
    """[n] fp32: of the trainer's distribution over the engine's (`correction.method`); 1 where
    nothing is corrected."""
    entropy: Tensor
    """[n] fp32, nats: of the policy's distribution; differentiable if the algorithm asks for it by
    `needs_entropy_gradient`."""
    sequence: Tensor
    """[n] int64: which response each token belongs to, in [0, S). All tokens of a response are in
    one micro-batch."""
    sequences: int
    """S."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """[n] fp32 each, further streams by name: `old_entropy`, before the step's first update;
    `reference_log_probs` with `algorithm.kl_coefficient`; `teacher_log_probs` of the section
    `teacher`, if the algorithm has `needs_teacher`."""
    add_over_ranks: Callable[[Tensor], Tensor] = _no_other_ranks
    """Sum of a tensor over the context-parallel ranks, differentiable. Collective."""

    def sequence_sum(self, values: Tensor) -> Tensor:
        """Sum over the token's whole response, wherever its tokens are.

        Differentiable; the gradient of a token has what the loss of every token of its response,
        on any rank, makes of the sum. Collective over context-parallel ranks: call it on all of
        them or on none.

        Args:
            values: [n] float.

        Returns:
            [n], the same for all tokens of a response.
        """
        # One place at least, so that a replica without responses has something to sum.
        start_S = values.new_zeros(max(1, self.sequences))
        sum_S = self.add_over_ranks(start_S.index_add(0, self.sequence, values))
        return sum_S[self.sequence]

    def sequence_mean(self, values: Tensor) -> Tensor:
        """Mean over the token's whole response; see `sequence_sum`."""
        return self.sequence_sum(values) / self.sequence_sum(torch.ones_like(values))


@dataclass(frozen=True)
class LossOutputs:
    """A micro-batch's part of the loss, or one term of it; terms are added by `+`."""

    loss: Tensor
    """[] differentiable: sum over this rank's tokens. The loss of the mini-batch is the sum over
    micro-batches, context-parallel and data-parallel ranks."""
    token_means: Mapping[str, Tensor] = field(default_factory=dict)
    """Metric -> [] detached sum over the tokens; reported as the mean over all tokens of the
    step's updates."""
    update_means: Mapping[str, Tensor] = field(default_factory=dict)
    """Metric -> [] detached part of this micro-batch, additive like the loss; reported as the mean
    over the step's updates."""

    def __add__(self, other: LossOutputs) -> LossOutputs:
        return LossOutputs(
            self.loss + other.loss,
            {**self.token_means, **other.token_means},
            {**self.update_means, **other.update_means},
        )


@dataclass(frozen=True)
class LossSums:
    """Of one update, over this rank's micro-batches."""

    tokens: float = 0.0
    """Generated tokens of the loss."""
    token_means: Mapping[str, float] = field(default_factory=dict)
    """Metric -> sum, to be divided by the tokens of all ranks and updates."""
    update_means: Mapping[str, float] = field(default_factory=dict)
    """Metric -> this rank's part, to be added over ranks and divided by the updates."""


def mean_of(inputs: LossInputs, per_token: Tensor) -> Tensor:
    """[] this rank's part of the mini-batch's mean of a per-token loss, importance-weighted."""
    return (inputs.coefficients * per_token * inputs.importance_weights).sum()


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """exp(x) - 1 - x of x = log pi - log pi_old, for each token: at least 0, and in the mean over
    tokens of pi_old the KL divergence of pi_old from pi (k3 of Schulman, "Approximating KL
    divergence", 2020).
    """
    return torch.expm1(log_ratio) - log_ratio


def entropy_bonus(inputs: LossInputs, coefficient: float) -> LossOutputs:
    """-coefficient x entropy, averaged over the mini-batch as the rest of the loss.

    Source: Williams and Peng, "Function Optimization Using Connectionist Reinforcement Learning
    Algorithms", 1991; not importance-weighted, as in verl.

    Args:
        inputs: With a differentiable entropy.
        coefficient: At least 0.
    """
    loss = -coefficient * (inputs.coefficients * inputs.entropy).sum()
    return LossOutputs(loss, update_means={"entropy_bonus": -loss.detach()})
