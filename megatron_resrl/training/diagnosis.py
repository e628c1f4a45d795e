"""Why the method works, measured at intervals: displaced likelihood and meeting gradients.

* Displaced likelihood (LLD): how the log-likelihood of correct responses changes across a step's
  updates. Punishing what wrong answers share with them makes it fall.
* Interference: how much the output layer's gradients of correct and of wrong tokens meet, before
  and after the token weights, on pairs drawn from each group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_resrl.config.schema import Recipe
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.distributed import device, gather_objects
from megatron_resrl.policy.batches import drawn_mask
from megatron_resrl.policy.interference import (
    interference_metrics,
    logit_factors,
    representation_cosines,
    representation_factors,
)
from megatron_resrl.policy.policy import Policy
from megatron_resrl.policy.schedule import is_last_stage
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.subspace import sampling_key
from megatron_resrl.training.scoring import Scored, score_samples

GROUPS = 8
"""Groups per replica whose gradients are compared."""


def displaced_likelihood(
    policy: Policy,
    samples: Sequence[Sample],
    mine: Sequence[int],
    positive: torch.Tensor,
    before: Scored,
    recipe: Recipe,
    timers: PhaseTimers,
) -> dict[str, float]:
    """Scores the correct responses again, after the updates. Collective.

    Args:
        policy: After the step's updates.
        samples: Of the step.
        mine: Indices of this replica's samples, the rows of `before`.
        positive: [samples] bool.
        before: Scores under the weights that began the step.
        recipe: Settings.
        timers: Of the step.

    Returns:
        `lld/log_likelihood_change`: mean over correct responses of the change of log p(response);
        `lld/log_prob_change`: the same per token; `lld/displaced_fraction`: share of correct
        responses whose likelihood fell. Nothing where no response is correct.
    """
    rows = [row for row, index in enumerate(mine) if positive[index]]
    correct = [mine[row] for row in rows]
    after = score_samples(policy, samples, correct, recipe, timers)
    drawn = drawn_mask([samples[index].tokens for index in correct], after.log_probs.shape[1])
    change = after.log_probs.double() - before.log_probs[rows].double()
    changes = change.cpu().masked_fill(~drawn, 0.0).sum(1).tolist()
    displaced = sum(value < 0 for value in changes)
    found = (sum(changes), displaced, len(changes), int(drawn.sum()))
    totals = [sum(column) for column in zip(*_of_replicas(found), strict=True)]
    total, displaced, responses, tokens = totals
    if not responses:
        return {}
    return {
        "lld/log_likelihood_change": total / responses,
        "lld/log_prob_change": total / tokens,
        "lld/displaced_fraction": displaced / responses,
    }


Token = tuple[int, int]
"""Index of a sample, and position in its response."""


def draw_tokens(
    samples: Sequence[Sample],
    shared: Sequence[int],
    positive: torch.Tensor,
    recipe: Recipe,
    step: int,
) -> list[tuple[list[Token], list[Token]]]:
    """Draws tokens of correct and of wrong responses from the first groups that have both.

    Args:
        samples: Of the step.
        shared: Indices of those to draw from.
        positive: [samples] bool.
        recipe: Seed, and `resrl.interference_tokens`, the most of either kind in a group.
        step: A key of the draw.
    """
    groups: list[tuple[list[Token], list[Token]]] = []
    for number in sorted({samples[index].group for index in shared}):
        key = sampling_key(recipe.seed, step, number)
        sides = []
        for correct in (True, False):
            tokens = [
                (index, position)
                for index in shared
                if samples[index].group == number and bool(positive[index]) == correct
                for position in _drawn_positions(samples[index])
            ]
            generator = torch.Generator().manual_seed(key)
            drawn = torch.randperm(len(tokens), generator=generator)
            limit = recipe.resrl.interference_tokens
            sides.append([tokens[place] for place in drawn[:limit].tolist()])
        if all(sides) and len(groups) < GROUPS:
            groups.append((sides[0], sides[1]))
    return groups


def _drawn_positions(sample: Sample) -> Iterable[int]:
    """Positions in a response of the tokens that the policy drew; none of a masked response."""
    response = sample.response
    if sample.masked:
        return []
    if response.response_mask is None:
        return range(len(response.token_ids))
    return [position for position, drawn in enumerate(response.response_mask) if drawn]


class InterferenceSample:
    """Tokens drawn from some groups, and the states that the output layer multiplies for them.

    Hand `collect` to `score_samples`, then ask for `metrics`.
    """

    def __init__(
        self,
        policy: Policy,
        samples: Sequence[Sample],
        mine: Sequence[int],
        positive: torch.Tensor,
        recipe: Recipe,
        step: int,
    ) -> None:
        """
        Args:
            policy: Whose states are collected.
            samples: Of the step.
            mine: Indices of the samples of this replica.
            positive: [samples] bool.
            recipe: How many tokens, and whether to measure the logit factor.
            step: A key of the draw.
        """
        self.policy = policy
        self.recipe = recipe
        self.samples = samples
        longest = max(len(sample.response.token_ids) for sample in samples)
        self._slot = torch.full((len(samples), longest), -1)
        self.groups = draw_tokens(samples, mine, positive, recipe, step)
        tokens = [token for pair in self.groups for side in pair for token in side]
        for slot, token in enumerate(tokens):
            self._slot[token] = slot
        self._states = torch.zeros(len(tokens), policy.config.hidden_size, device=device())

    def collect(self, hidden: torch.Tensor, sample: torch.Tensor, position: torch.Tensor) -> None:
        """Keeps the drawn tokens of a micro-batch; see `scoring.FinalStates`."""
        slot = self._slot[sample, position]
        wanted = (slot >= 0).nonzero().flatten()
        here = wanted.to(hidden.device)
        self._states[slot[wanted].to(hidden.device)] = hidden[here].float()

    def metrics(self, mine: Sequence[int], token_weights: torch.Tensor) -> dict[str, float]:
        """Means over the drawn groups of all replicas. Collective.

        Args:
            mine: Indices of this replica's samples.
            token_weights: [mine, T] their weights.

        Returns:
            See `interference_metrics`; nothing where no group has right and wrong answers.
        """
        found: list[dict[str, float]] = []
        if is_last_stage():
            weights = self._weights(mine, token_weights)
            states = self._add_up(self._states)
            start = 0
            for positives, negatives in self.groups:
                middle, end = start + len(positives), start + len(positives) + len(negatives)
                found.append(
                    self._group_metrics(
                        (states[start:middle], positives),
                        (states[middle:end], negatives),
                        weights[middle:end],
                    )
                )
                start = end
        replicas = _of_replicas(found)
        groups = [group for replica in replicas for group in replica]
        if not groups:
            return {}
        return {name: sum(group[name] for group in groups) / len(groups) for name in groups[0]}

    def _weights(self, mine: Sequence[int], token_weights: torch.Tensor) -> torch.Tensor:
        """[drawn tokens] weight of each, known to the replica that has the response."""
        weights = torch.zeros(len(self._states), device=device())
        slots = self._slot[list(mine)]
        row, position = (slots >= 0).nonzero(as_tuple=True)
        place = slots[row, position].to(device())
        weights[place] = token_weights[row.to(device()), position.to(device())]
        return weights

    def _add_up(self, states: torch.Tensor) -> torch.Tensor:
        """Sum over the context-parallel ranks, each of which has some of them."""
        group = self.policy.context_parallel_group
        if dist.get_world_size(group) > 1:
            dist.all_reduce(states, group=group)
        return states

    def _group_metrics(
        self,
        positive: tuple[torch.Tensor, list[Token]],
        negative: tuple[torch.Tensor, list[Token]],
        weights: torch.Tensor,
    ) -> dict[str, float]:
        states = positive[0], negative[0]
        logit = None
        if self.recipe.resrl.logit_factor:
            weight = self.policy.modules[-1].output_weight().detach()
            logit = logit_factors(
                states[0].to(weight.dtype),
                self._targets(positive[1]),
                states[1].to(weight.dtype),
                self._targets(negative[1]),
                weight,
                vocab_size=self.policy.hf_config.vocab_size,
                temperature=self.recipe.rollout.temperature,
                group=self.policy.tensor_parallel_group,
            )
        return interference_metrics(
            representation_factors(*states),
            logit,
            weights,
            cosine=representation_cosines(*states),
        )

    def _targets(self, tokens: Sequence[Token]) -> torch.Tensor:
        ids = [self.samples[index].response.token_ids[position] for index, position in tokens]
        return torch.tensor(ids, dtype=torch.int64, device=device())


def _of_replicas(value: object) -> list:
    """One value per replica (its last stage)."""
    speaks = (
        is_last_stage()
        and parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_context_parallel_rank() == 0
    )
    return [found[0] for found in gather_objects([value] if speaks else None) if found]
