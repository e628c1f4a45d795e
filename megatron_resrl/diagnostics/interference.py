"""Gradient interference: inner products of gradients of correct and incorrect tokens.

How much the output layer's gradients of correct and of incorrect tokens meet, before and after the
token weights, on pairs of tokens sampled from each group; the formulas are in
`policy.interference`.

Shapes: B responses of this replica, T tokens of the step's longest response, S sampled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_resrl.config.schema import ResrlConfig
from megatron_resrl.diagnostics.observer import StepStart, StepState
from megatron_resrl.diagnostics.replicas import gather_from_replicas
from megatron_resrl.diagnostics.step_metrics import is_due
from megatron_resrl.observe.phases import phase
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import device
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.interference import (
    interference_metrics,
    logit_factors,
    representation_cosines,
    representation_factors,
)
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.results import OnFinalStates
from megatron_resrl.policy.schedule import is_last_stage
from megatron_resrl.rollout.batch import TrainingBatch
from megatron_resrl.subspace import sampling_key

GROUPS = 8
"""Groups per replica whose gradients are compared."""

Token = tuple[int, int]
"""Row of a response in the replica's batch, and position in the response."""


class Interference:
    """Samples tokens, collects their final states, compares; see `StepObserver`."""

    def __init__(
        self, settings: ResrlConfig, temperature: float, seed: int, timers: PhaseTimers
    ) -> None:
        """
        Args:
            settings: How often, how many tokens, and whether to measure the logit factor.
            temperature: Divides the logits.
            seed: Of the run.
            timers: Phase "diagnosis" is timed here.
        """
        self._settings = settings
        self._temperature = temperature
        self._seed = seed
        self._timers = timers
        self._sample: InterferenceSample | None = None
        self._metrics: dict[str, float] = {}

    def before_scoring(self, start: StepStart) -> OnFinalStates | None:
        """Samples the tokens whose states the scoring pass is to show."""
        self._sample, self._metrics = None, {}
        if not is_due(start.step, self._settings.diagnose_every):
            return None
        groups = sample_tokens(
            start.local, self._settings.interference_tokens, self._seed, start.step
        )
        self._sample = InterferenceSample(start.policy, start.local, groups)
        return self._sample.collect

    def after_scoring(self, state: StepState) -> None:
        """Compares, while the output layer is the one that scored. Collective."""
        if self._sample is not None:
            with phase(self._timers, "diagnosis"):
                temperature = self._temperature if self._settings.logit_factor else None
                self._metrics = self._sample.metrics(state.token_weights.weights, temperature)
            self._sample = None

    def after_updates(self, state: StepState) -> dict[str, float]:
        """See `interference_metrics`; nothing where no group has both kinds of answers."""
        return self._metrics


def sample_tokens(
    batch: TrainingBatch, limit: int, seed: int, step: int
) -> list[tuple[list[Token], list[Token]]]:
    """Samples tokens of correct and of incorrect responses, in the first groups that have both.

    Args:
        batch: This replica's responses; excluded ones are left out.
        limit: Most tokens of either kind in a group.
        seed: Of the run.
        step: With the seed and the group the key of the sample.
    """
    counted_BT = batch.loss_mask & ~batch.excluded[:, None]
    groups: list[tuple[list[Token], list[Token]]] = []
    for group in sorted(set(batch.group_ids.tolist())):
        sides = []
        for correct in (True, False):
            inside_B = (batch.group_ids == group) & (batch.positive == correct)
            tokens = (counted_BT & inside_B[:, None]).nonzero().tolist()
            generator = torch.Generator().manual_seed(sampling_key(seed, step, group))
            order = torch.randperm(len(tokens), generator=generator)
            sides.append([tuple(tokens[place]) for place in order[:limit].tolist()])
        if all(sides) and len(groups) < GROUPS:
            groups.append((sides[0], sides[1]))
    return groups


class InterferenceSample:
    """Tokens sampled from some groups, and the states that the output layer multiplies for them.

    Hand `collect` to the scoring pass, then ask for `metrics`.
    """

    def __init__(
        self, policy: Policy, batch: TrainingBatch, groups: list[tuple[list[Token], list[Token]]]
    ) -> None:
        """
        Args:
            policy: Whose states are collected.
            batch: This replica's responses.
            groups: From `sample_tokens`.
        """
        self.policy = policy
        self.groups = groups
        self._batch = batch
        tokens = [token for pair in groups for side in pair for token in side]
        # Which sampled token each token is; -1: none.
        self._slot_BT = torch.full(batch.loss_mask.shape, -1)
        for slot, token in enumerate(tokens):
            self._slot_BT[token] = slot
        self._states = torch.zeros(len(tokens), policy.config.hidden_size, device=device())

    def collect(self, hidden: Tensor, micro_batch: MicroBatch) -> None:
        """Keeps the sampled tokens of a micro-batch; see `OnFinalStates`."""
        host = micro_batch.host
        slot = self._slot_BT[host.sequence_index, host.response_position]
        wanted = (slot >= 0).nonzero().flatten()
        here = wanted.to(hidden.device)
        self._states[slot[wanted].to(hidden.device)] = hidden[here].float()

    def metrics(self, token_weights: Tensor, temperature: float | None) -> dict[str, float]:
        """Means over the sampled groups of all replicas. Collective.

        Args:
            token_weights: [B, T] of this replica's responses.
            temperature: Divides the logits of the logit factor; None: it is not measured.

        Returns:
            See `interference_metrics`; nothing where no group has both kinds of answers.
        """
        found: list[dict[str, float]] = []
        if is_last_stage():
            weights = self._weights(token_weights)
            group = self.policy.context_parallel_group
            if dist.get_world_size(group) > 1:
                # Every context-parallel rank has the states of its pieces.
                dist.all_reduce(self._states, group=group)
            start = 0
            for positives, negatives in self.groups:
                middle, end = start + len(positives), start + len(positives) + len(negatives)
                found.append(
                    self._group_metrics(
                        (self._states[start:middle], positives),
                        (self._states[middle:end], negatives),
                        weights[middle:end],
                        temperature,
                    )
                )
                start = end
        groups = [group for replica in gather_from_replicas(found) for group in replica]
        if not groups:
            return {}
        return {name: sum(group[name] for group in groups) / len(groups) for name in groups[0]}

    def _weights(self, token_weights: Tensor) -> Tensor:
        """[S] weight of each sampled token."""
        weights = torch.zeros(len(self._states), device=device())
        row, position = (self._slot_BT >= 0).nonzero(as_tuple=True)
        slot = self._slot_BT[row, position].to(device())
        weights[slot] = token_weights[row.to(device()), position.to(device())]
        return weights

    def _group_metrics(
        self,
        positive: tuple[Tensor, list[Token]],
        negative: tuple[Tensor, list[Token]],
        weights: Tensor,
        temperature: float | None,
    ) -> dict[str, float]:
        states = positive[0], negative[0]
        logit = None
        if temperature is not None:
            weight = self.policy.modules[-1].output_weight().detach()
            logit = logit_factors(
                states[0].to(weight.dtype),
                self._targets(positive[1]),
                states[1].to(weight.dtype),
                self._targets(negative[1]),
                weight,
                vocab_size=self.policy.hf_config.vocab_size,
                temperature=temperature,
                group=self.policy.tensor_parallel_group,
            )
        return interference_metrics(
            representation_factors(*states),
            logit,
            weights,
            cosine=representation_cosines(*states),
        )

    def _targets(self, tokens: Sequence[Token]) -> Tensor:
        rows, positions = map(list, zip(*tokens, strict=True))
        # [B, L]: response token t stands behind the prompt.
        columns = self._batch.prompt_lengths[rows] + torch.tensor(positions)
        return self._batch.token_ids[rows, columns].to(device())
