"""How long the prompts and responses of a dry run are, and which of them are correct."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_resrl.config.schema import Recipe
from megatron_resrl.rollout.batch import RolloutBatch

_TOKEN = 1
"""Every token is this one; nothing reads them."""
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
        # One row's memory, seen count times: only what a replica selects of them is made.
        row = torch.full((1, self.prompt_tokens + self.response_tokens), _TOKEN)
        mask = torch.ones(1, self.response_tokens, dtype=torch.bool)
        log_probs = torch.full((1, self.response_tokens), _LOG_PROB, dtype=torch.float64)
        zeros, false = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
        place = torch.arange(group_size).repeat(groups)
        scores = (place % 2).double()
        return RolloutBatch(
            token_ids=row.expand(count, -1),
            prompt_lengths=zeros + self.prompt_tokens,
            response_lengths=zeros + self.response_tokens,
            loss_mask=mask.expand(count, -1),
            rollout_log_probs=log_probs.expand(count, -1),
            rewards=scores,
            scores=scores,
            excluded=false,
            group_ids=torch.arange(groups).repeat_interleave(group_size),
            index_in_group=place,
            prompt_ids=torch.arange(groups).repeat_interleave(group_size),
            weight_versions=torch.zeros(count, 2, dtype=torch.int64),
            truncated=false,
            timed_out=false,
            killed=false,
        )
