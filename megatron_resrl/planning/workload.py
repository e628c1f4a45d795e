"""How long the prompts and responses of a dry run are, and which of them are correct."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_resrl.config.schema import Recipe
from megatron_resrl.rollout.batch import RolloutBatch

_DIGITS = 32
"""Tokens that tell prompts and responses apart; nothing else reads them."""
_LOG_PROB = -1.0


@dataclass(frozen=True)
class Workload:
    """Prompts and responses of one length each."""

    prompt_tokens: int
    """Of every prompt, at least 1."""
    response_tokens: int
    """Of every response, at least 1."""
    whole_step: bool = False
    """Take all groups of a step; False: a few, and count all others as those, see `sample`."""

    @classmethod
    def longest(cls, recipe: Recipe) -> Workload:
        """As long as the recipe allows: what memory has to be there for."""
        return cls(recipe.data.max_prompt_length, recipe.rollout.max_response_length)

    def batch(self, groups: int, group_size: int) -> RolloutBatch:
        """Graded responses, every second one correct.

        Args:
            groups: Prompts, of all replicas.
            group_size: Responses of each.
        """
        count = groups * group_size
        group_ids = torch.arange(groups).repeat_interleave(group_size)
        place = torch.arange(group_size).repeat(groups)
        # Responses share their group's prompt and differ in their first token.
        tokens = [_numbered(group_ids, self.prompt_tokens), _numbered(place, self.response_tokens)]
        # The rest is one row's memory, seen count times.
        mask = torch.ones(1, self.response_tokens, dtype=torch.bool)
        log_probs = torch.full((1, self.response_tokens), _LOG_PROB, dtype=torch.float64)
        zeros, false = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
        scores = (place % 2).double()
        return RolloutBatch(
            token_ids=torch.cat(tokens, dim=1),
            prompt_lengths=zeros + self.prompt_tokens,
            response_lengths=zeros + self.response_tokens,
            loss_mask=mask.expand(count, -1),
            rollout_log_probs=log_probs.expand(count, -1),
            rewards=scores,
            scores=scores,
            excluded=false,
            group_ids=group_ids,
            index_in_group=place,
            prompt_ids=group_ids,
            weight_versions=torch.zeros(count, 2, dtype=torch.int64),
            truncated=false,
            timed_out=false,
            killed=false,
        )


def _numbered(numbers: Tensor, length: int) -> Tensor:
    """[len(numbers), length] tokens, which begin with the digits of each number, the last first."""
    exponents = torch.arange(length).clamp(max=12)
    return numbers[:, None] // _DIGITS**exponents % _DIGITS
