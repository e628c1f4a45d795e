"""Pass 1 of a step: what the policy thought of every token, and what each token weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_resrl.config.schema import Recipe
from megatron_resrl.data.packing import MicroBatch
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import device
from megatron_resrl.policy.policy import Policy, TappedStates
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.subspace import GroupReport, sampling_key
from megatron_resrl.training.phases import phase
from megatron_resrl.training.residual_weights import GroupedTokenWeights


@dataclass(frozen=True)
class Scored:
    """Per-token results for this replica's B sequences; meaningful on the last stage only.

    Matrices are [B, T] fp32, T the longest response; entries past a response's end are unused.
    """

    log_probs: torch.Tensor
    """Under the weights that begin the step, at the sampling temperature."""
    entropy: torch.Tensor
    """Nats."""
    token_weights: torch.Tensor
    """1 where nothing applies."""
    reports: list[GroupReport]
    """One per group, if weights were asked for."""


def score_samples(
    policy: Policy,
    samples: Sequence[Sample],
    positive: torch.Tensor,
    recipe: Recipe,
    step: int,
    timers: PhaseTimers,
    *,
    weigh: bool,
) -> Scored:
    """Runs the forward-only pass over this replica's samples, streaming groups into weights.

    Args:
        policy: Weights are read only.
        samples: Of this replica, whole groups, neighbours together.
        positive: [B] bool.
        recipe: Micro-batch size, temperature and subspace settings.
        step: A key of random choices.
        timers: The subspace's time is taken out of the pass's.
        weigh: Fit subspaces and weigh tokens.
    """
    longest = max(len(sample.response.token_ids) for sample in samples)
    grouped = GroupedTokenWeights(
        [sample.group for sample in samples],
        positive.to(device()),
        longest,
        recipe.resrl,
        seed=lambda group: sampling_key(recipe.seed, step, group),
        split_over=policy.tensor_parallel_group if policy.config.sequence_parallel else None,
    )

    def on_hidden_states(states: TappedStates, batch: MicroBatch) -> None:
        with phase(timers, "subspace"):
            grouped.add(states, batch)

    micro_batches = policy.micro_batches(
        [sample.tokens for sample in samples], recipe.algorithm.micro_batch_size
    )
    scores = policy.score(
        micro_batches,
        temperature=recipe.rollout.temperature,
        on_hidden_states=on_hidden_states if weigh else None,
    )
    log_probs, entropy = torch.zeros(2, len(samples), longest, device=device())
    for batch, score in zip(micro_batches, scores, strict=False):
        log_probs[batch.sequence_index, batch.response_position] = score.log_probs
        entropy[batch.sequence_index, batch.response_position] = score.entropy
    return Scored(log_probs, entropy, grouped.weights, grouped.reports)
