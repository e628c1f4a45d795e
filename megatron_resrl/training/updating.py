"""Pass 2 of a step: one optimizer step on the policy loss of a mini-batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch

from megatron_resrl.algorithms import Algorithm, LossInputs, LossOutputs, LossSums, entropy_bonus
from megatron_resrl.platform.distributed import device, on_device_together, sum_over_ranks
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.results import UpdateResult
from megatron_resrl.policy.token_budget import Fed
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.training.scoring import PassSettings, Scores


@dataclass(frozen=True)
class ResponseTargets:
    """What the loss of this replica's B responses is made of, before any is scored; constants."""

    advantages: torch.Tensor
    """[B] float64, one per response."""
    positive: torch.Tensor
    """[B] bool."""
    coefficients: torch.Tensor
    """[B] float64: what each token of a response counts; global denominators are inside."""
    rollout_log_probs: torch.Tensor
    """[B, T] fp32, of the engine."""

    @classmethod
    def of_responses(cls, batch: TrainingBatch) -> ResponseTargets:
        """The targets of a replica's batch."""
        return ResponseTargets(
            advantages=batch.advantages,
            positive=batch.positive,
            coefficients=batch.coefficients,
            rollout_log_probs=batch.rollout_log_probs.float(),
        )

    def to(self, place: torch.device) -> Self:
        """The same on another device; the host does not wait for it."""
        return dataclasses.replace(self, **on_device_together(vars(self), place))


@dataclass(frozen=True)
class Targets(ResponseTargets):
    """The same with what a scoring pass gave."""

    old_log_probs: torch.Tensor
    """[B, T] fp32."""
    token_weights: torch.Tensor
    """[B, T] fp32."""
    importance_weights: torch.Tensor
    """[B, T] fp32; 1 where nothing is corrected."""
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """[B, T] fp32 each: further streams, by the names that algorithms know them by."""

    @classmethod
    def of(
        cls,
        batch: TrainingBatch,
        scores: Scores,
        token_weights: torch.Tensor,
        importance_weights: torch.Tensor,
        streams: Mapping[str, torch.Tensor] | None = None,
    ) -> Targets:
        """The targets of a replica's batch, from what the scoring pass and other models gave."""
        return cls(
            **vars(ResponseTargets.of_responses(batch)),
            old_log_probs=scores.log_probs,
            token_weights=token_weights,
            importance_weights=importance_weights,
            extra={"old_entropy": scores.entropy, **(streams or {})},
        )

    def of_tokens(
        self, batch: MicroBatch, log_probs: torch.Tensor, entropy: torch.Tensor
    ) -> TokenTargets:
        """The entries of a micro-batch's tokens; what the update itself computed is not needed."""
        token = batch.sequence_index, batch.response_position
        return TokenTargets(
            old_log_probs=self.old_log_probs[token],
            token_weights=self.token_weights[token],
            importance_weights=self.importance_weights[token],
            extra={name: stream[token] for name, stream in self.extra.items()},
        )

    def to(self, place: torch.device) -> Self:
        """See `ResponseTargets.to`."""
        own = {name: each for name, each in vars(self).items() if name != "extra"}
        return type(self)(
            **on_device_together(own, place), extra=on_device_together(self.extra, place)
        )


@dataclass(frozen=True)
class TokenTargets:
    """Of the n tokens of a micro-batch; [n] fp32 each, constants."""

    old_log_probs: torch.Tensor
    token_weights: torch.Tensor
    importance_weights: torch.Tensor
    extra: Mapping[str, torch.Tensor]


TokenTargetsOf = Callable[[MicroBatch, torch.Tensor, torch.Tensor], TokenTargets]
"""(micro-batch, log_probs [n], entropy [n]) -> what its loss is made of."""


def update_policy(
    policy: Policy,
    algorithm: Algorithm,
    batch: TrainingBatch,
    rows: Sequence[int],
    targets: Targets,
    settings: PassSettings,
) -> tuple[UpdateResult, LossSums, Fed]:
    """One optimizer step. Collective.

    Args:
        policy: Updated in place.
        algorithm: Its loss.
        batch: This replica's B responses.
        rows: Those that have a loss; none is fine, as long as another replica has one.
        targets: What the loss of the batch is made of.
        settings: Micro-batches and temperature.

    Returns:
        The outcome, this rank's sums for the metrics (empty but on the last stage), and what the
        model was fed.
    """
    placed = targets.to(device())
    limit = settings.limit(policy)
    lengths = limit.lengths_of(batch)
    parts = limit.cut([(row,) for row in rows], lengths)
    micro_batches = policy.micro_batches_of(batch, parts)
    result = policy.update(
        micro_batches,
        functools.partial(loss_of_tokens, algorithm, policy, placed, placed.of_tokens),
        temperature=settings.temperature,
        entropy_gradient=algorithm.needs_entropy_gradient,
    )
    return result, sums_of(result.collected), limit.fed(parts, lengths)


@dataclass(frozen=True)
class Collected:
    """Sums over one micro-batch, detached: a graph would keep what the last pipeline stage has
    received, and its gradient, until the update ends."""

    tokens: int
    token_means: dict[str, torch.Tensor]
    update_means: dict[str, torch.Tensor]
    """Of the algorithm, and what is reported of every algorithm."""

    @classmethod
    def of(
        cls, tokens: int, outputs: LossOutputs, reported: Mapping[str, torch.Tensor]
    ) -> Collected:
        """Detaches all."""
        token_means = {name: value.detach() for name, value in outputs.token_means.items()}
        update_means = {**reported, **outputs.update_means}
        return cls(
            tokens, token_means, {name: value.detach() for name, value in update_means.items()}
        )


def loss_of_tokens(
    algorithm: Algorithm,
    policy: Policy,
    targets: ResponseTargets,
    of_tokens: TokenTargetsOf,
    log_probs: torch.Tensor,
    entropy: torch.Tensor,
    batch: MicroBatch,
) -> tuple[torch.Tensor, Collected]:
    """A `LossFunction`: this micro-batch's part of the loss, and what metrics need of it."""
    # Which entries of [B] and [B, T] the micro-batch's n tokens are.
    sequence = batch.sequence_index
    tokens = of_tokens(batch, log_probs, entropy)
    advantages = algorithm.token_advantages(
        targets.advantages[sequence], targets.positive[sequence], tokens.token_weights
    )
    inputs = LossInputs(
        log_probs=log_probs,
        old_log_probs=tokens.old_log_probs,
        rollout_log_probs=targets.rollout_log_probs[sequence, batch.response_position],
        advantages=advantages.to(log_probs.dtype),
        token_weights=tokens.token_weights,
        positive=targets.positive[sequence],
        coefficients=targets.coefficients[sequence].to(log_probs.dtype),
        importance_weights=tokens.importance_weights,
        entropy=entropy,
        sequence=sequence,
        sequences=len(targets.advantages),
        extra=tokens.extra,
        add_over_ranks=functools.partial(sum_over_ranks, group=policy.context_parallel_group),
    )
    outputs = algorithm.policy_loss(inputs)
    if algorithm.entropy_coefficient > 0:
        outputs = outputs + entropy_bonus(inputs, algorithm.entropy_coefficient)
    if algorithm.kl is not None and algorithm.kl_in_loss:
        outputs = outputs + algorithm.kl.loss(inputs)
    negative_share = targets.coefficients[sequence] * ~inputs.positive
    unweighted = targets.advantages[sequence]
    reported = {
        "loss": outputs.loss,
        "resrl/negative_mass": (negative_share * advantages.abs()).sum(),
        "resrl/negative_mass_unweighted": (negative_share * unweighted.abs()).sum(),
    }
    return outputs.loss, Collected.of(len(sequence), outputs, reported)


def sums_of(collected: Sequence[Collected]) -> LossSums:
    """Over the micro-batches; read from the device at once."""
    if not collected:
        return LossSums()
    kinds = [{**each.token_means, **each.update_means} for each in collected]
    rows = [torch.stack([value.double() for value in kind.values()]) for kind in kinds]
    columns = zip(*torch.stack(rows).tolist(), strict=True)
    sums = dict(zip(kinds[0], map(sum, columns), strict=True))
    token_means = {name: sums[name] for name in collected[0].token_means}
    return LossSums(
        tokens=float(sum(each.tokens for each in collected)),
        token_means=token_means,
        update_means={name: sums[name] for name in collected[0].update_means},
    )
