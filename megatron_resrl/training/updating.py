"""Pass 2 of a step: one optimizer step on the policy loss of a mini-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_resrl.algorithms import Algorithm, ppo_clip
from megatron_resrl.config.schema import Recipe
from megatron_resrl.platform.distributed import device
from megatron_resrl.policy.batches import MicroBatch, TokenBatch
from megatron_resrl.policy.policy import Policy, UpdateResult
from megatron_resrl.rollout.collect import Sample


@dataclass(frozen=True)
class Targets:
    """What the loss of this replica's B sequences is made of."""

    advantages: torch.Tensor
    """[B] float64, one per response."""
    positive: torch.Tensor
    """[B] bool."""
    coefficients: torch.Tensor
    """[B] float64: what each token of a response counts; global denominators are inside."""
    old_log_probs: torch.Tensor
    """[B, T] fp32."""
    token_weights: torch.Tensor
    """[B, T] fp32."""
    corrections: torch.Tensor | None
    """[B, T] fp32: factors on the loss of each token, for responses drawn from another
    distribution than `old_log_probs` are of; None: all are 1."""


def update_policy(
    policy: Policy,
    algorithm: Algorithm,
    samples: Sequence[Sample],
    targets: Targets,
    recipe: Recipe,
) -> tuple[UpdateResult, dict[str, float]]:
    """One optimizer step. Collective.

    Args:
        policy: Updated in place.
        algorithm: Turns advantages and weights of responses into those of tokens.
        samples: The B responses of this replica that have a gradient; none is fine, as long as
            another replica has one.
        targets: What their loss is made of.
        recipe: Clipping, micro-batch size and temperature.

    Returns:
        The outcome, and this replica's token sums for the metrics (empty but on the last stage).
    """
    settings = recipe.algorithm
    on_device = {
        name: None if value is None else value.to(device()) for name, value in vars(targets).items()
    }
    placed = Targets(**on_device)

    def loss_function(
        log_probs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        sequence, position = batch.sequence_index, batch.response_position
        advantages = algorithm.token_advantages(
            placed.advantages[sequence],
            placed.positive[sequence],
            placed.token_weights[sequence, position],
        )
        loss = ppo_clip(
            log_probs,
            placed.old_log_probs[sequence, position],
            advantages.to(log_probs.dtype),
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip,
        )
        per_token = placed.coefficients[sequence].to(log_probs.dtype) * loss.per_token
        if placed.corrections is not None:
            per_token = per_token * placed.corrections[sequence, position]
        total = per_token.sum()
        wrong_share = placed.coefficients[sequence] * ~placed.positive[sequence]
        return total, {
            "loss": total.detach(),
            "resrl/negative_mass": (wrong_share * advantages.abs()).sum(),
            "resrl/negative_mass_unweighted": (
                wrong_share * placed.advantages[sequence].abs()
            ).sum(),
            "tokens": total.new_full((), float(len(sequence))),
            "clipped_low": loss.clipped_low.sum(),
            "clipped_high": loss.clipped_high.sum(),
            "dual_clipped": loss.dual_clipped.sum(),
            "approx_kl": loss.approx_kl.sum(),
        }

    micro_batches = policy.micro_batches(
        TokenBatch.from_sequences([sample.tokens for sample in samples]), settings.micro_batch_size
    )
    result = policy.update(micro_batches, loss_function, temperature=recipe.rollout.temperature)
    return result, _sums(result.collected)


def _sums(collected: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Of each quantity over the micro-batches; read from the device at once."""
    if not collected:
        return {}
    rows = [torch.stack([value.double() for value in one.values()]) for one in collected]
    columns = zip(*torch.stack(rows).tolist(), strict=True)
    return dict(zip(collected[0], map(sum, columns), strict=True))
