"""Pass 1 of a step: log-probabilities of every generated token, and its weight.

Shapes: B responses of this replica, T tokens of the step's longest response.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_resrl.errors import RunError
from megatron_resrl.observe.phases import phase
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import device, on_device
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.finite import require_finite
from megatron_resrl.policy.layout_batches import length_multiple
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.results import OnFinalStates, TappedStates, TokenScores
from megatron_resrl.policy.token_budget import MicroBatchLimit
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.token_weighting.protocol import WeightingPass


class StatesNotFinite(RunError):
    """Hidden states have no direction; raised on the ranks that share a group."""


@dataclass(frozen=True)
class PassSettings:
    """What a pass over micro-batches depends on, besides policy and batch."""

    micro_batch_size: int
    """Most responses of a micro-batch."""
    temperature: float
    """Divides the logits, as when the responses were sampled."""
    model_path: str
    """`model.path`, for messages."""
    max_tokens: int | None = None
    """Most positions of a micro-batch of an update."""
    max_scoring_tokens: int | None = None
    """Most positions of a micro-batch of a scoring pass; None: as for updates."""

    def limit(self, policy: Policy, *, scoring: bool = False) -> MicroBatchLimit:
        """Of micro-batches of updates, or of scoring passes, in a policy's layout."""
        tokens = (scoring and self.max_scoring_tokens) or self.max_tokens
        multiple = length_multiple(policy.config)
        return MicroBatchLimit(
            self.micro_batch_size,
            tokens,
            packed=policy.sequence_packing,
            multiple=multiple,
            shared=policy.shared_prompts,
        )


@dataclass(frozen=True)
class Scores:
    """[B, T] fp32 each; entries outside of the loss mask are unused."""

    log_probs: Tensor
    """At the sampling temperature; meaningful on the last stage."""
    entropy: Tensor
    """Nats; meaningful on the last stage."""

    @classmethod
    def none(cls, batch: RolloutBatch) -> Scores:
        """Zeros, for responses that no pass has scored."""
        return cls(*torch.zeros(2, *batch.loss_mask.shape, device=device()))

    @classmethod
    def of(
        cls,
        batch: RolloutBatch,
        micro_batches: Sequence[MicroBatch],
        found: Sequence[TokenScores],
        policy: Policy,
    ) -> Scores:
        """Puts the scores of micro-batches, none but on the last stage, in their places.

        Collective over ranks that share sequences.
        """
        # [n] of each micro-batch -> [B, T].
        scores = cls.none(batch)
        for micro_batch, own in zip(micro_batches, found, strict=False):
            token = micro_batch.sequence_index, micro_batch.response_position
            scores.log_probs[token] = own.log_probs
            scores.entropy[token] = own.entropy
        group = policy.context_parallel_group
        if dist.get_world_size(group) > 1:
            # Each context-parallel rank has the tokens of its pieces; the rest are zeros.
            dist.all_reduce(scores.log_probs, group=group)
            dist.all_reduce(scores.entropy, group=group)
        return scores

    def require_finite(self, batch: RolloutBatch, policy: Policy, model_path: str) -> None:
        """Refuses what is no log-probability. Collective; see `policy.finite.require_finite`."""
        generated = batch.loss_mask.to(self.log_probs.device)
        require_finite(self.log_probs, generated, batch.name, policy, model_path, phase="scoring")

    def replaced(self, rows: Sequence[int], others: Scores) -> Scores:
        """With some rows of other scores."""
        index = on_device(torch.tensor(rows, dtype=torch.int64), self.log_probs.device)
        log_probs, entropy = self.log_probs.clone(), self.entropy.clone()
        log_probs[index], entropy[index] = others.log_probs[index], others.entropy[index]
        return Scores(log_probs, entropy)


def score_batch(
    policy: Policy,
    batch: RolloutBatch,
    settings: PassSettings,
    timers: PhaseTimers,
    *,
    weighting: WeightingPass | None = None,
    on_final_states: OnFinalStates | None = None,
) -> Scores:
    """Runs the forward-only pass over this replica's responses. Collective.

    Args:
        policy: Weights are read only.
        batch: Of this replica, on the CPU.
        settings: See there.
        timers: The weighting's time is taken out of the pass's, as phase "subspace".
        weighting: Observes the hidden states that it reads, and says in which order responses pass;
            None: nothing is weighted.
        on_final_states: Called on the last stage for each micro-batch, under context parallelism
            with each rank's own tokens.

    Raises:
        LogitsNotFinite: On all ranks, if a log-probability is not a number.
        StatesNotFinite: An observed state is not.
    """
    layer, order, observe = None, None, None
    if weighting is not None:
        layer, order = weighting.layer, weighting.order
        observe = functools.partial(observe_states, weighting, timers)
    rows = range(len(batch)) if order is None else order
    limit = settings.limit(policy, scoring=True)
    parts = limit.cut_in_order([(row,) for row in rows], limit.lengths_of(batch))
    micro_batches = policy.micro_batches_of(batch, parts)
    with named_states_not_finite(settings.model_path):
        found = policy.score(
            micro_batches,
            temperature=settings.temperature,
            on_hidden_states=None if layer is None else observe,
            layer=-2 if layer is None else layer,
            on_final_states=on_final_states,
        )
    scores = Scores.of(batch, micro_batches, found, policy)
    scores.require_finite(batch, policy, settings.model_path)
    return scores


@contextlib.contextmanager
def named_states_not_finite(model_path: str) -> Iterator[None]:
    """A pass in which a weighting may find hidden states that are not finite.

    Args:
        model_path: `model.path`, for the message.

    Raises:
        StatesNotFinite: In place of the weighting's FloatingPointError.
    """
    try:
        yield
    except FloatingPointError as error:
        raise StatesNotFinite(
            f"scoring: {error}, so that the model's logits are not finite; either model.path = "
            f"{model_path!r} is damaged, or its weights grew too large in training: lower "
            "optimizer.lr or go back to an older checkpoint"
        ) from error


def observe_states(
    weighting: WeightingPass, timers: PhaseTimers, states: TappedStates, micro_batch: MicroBatch
) -> None:
    """Shows a weighting the states of a micro-batch, and times it."""
    with phase(timers, "subspace"):
        weighting.observe(states, micro_batch)
