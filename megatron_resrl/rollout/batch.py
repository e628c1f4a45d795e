"""The graded responses of a step as tensors.

Shapes: B responses, L tokens of the longest prompt with its response, T tokens of the longest
response.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_resrl.policy.batches import TokenBatch, padded
from megatron_resrl.rollout.collect import Sample


@dataclass(frozen=True)
class RolloutBatch(TokenBatch):
    """Graded responses, made once after grading; on the CPU unless moved by `to`.

    Two facts are kept apart: `loss_mask` says which tokens the policy generated, in every response;
    `excluded` says which responses take part in nothing but their group's statistics.
    """

    rollout_log_probs: Tensor
    """[B, T] float64: of each generated token under the distribution that the engine sampled from;
    0 elsewhere."""
    rewards: Tensor
    """[B] float64: scores, or weighted sums of several functions' scores, after length scaling and
    overlong penalty."""
    scores: Tensor
    """[B] float64: of the verifier or the environment; correct is above 0."""
    excluded: Tensor
    """[B] bool: no part of the loss, of its denominators or of the subspace (`reward.overlong:
    mask`), though the reward counts in the group's statistics."""
    group_ids: Tensor
    """[B] int64 index of the prompt in the step."""
    index_in_group: Tensor
    """[B] int64 index of the response among its group's."""
    prompt_ids: Tensor
    """[B] int64 record of the prompt in its data file, for messages."""
    weight_versions: Tensor
    """[B, 2] int64: training steps taken before the weights that generated the first and the last
    token."""
    truncated: Tensor
    """[B] bool: cut off at the longest length."""
    timed_out: Tensor
    """[B] bool: the grader did not finish, and the score is 0 for that."""
    killed: Tensor
    """[B] bool: the grader ran out of memory or was killed, and the score is 0 for that."""

    @classmethod
    def from_samples(cls, samples: Sequence[Sample]) -> RolloutBatch:
        """The batch of whole groups of samples, in their order.

        Raises:
            ValueError: A prompt is empty, or a mask has another length than its response.
        """
        tokens = TokenBatch.from_sequences([sample.tokens for sample in samples])
        log_probs = [torch.tensor(s.response.log_probs, dtype=torch.float64) for s in samples]
        return cls(
            **vars(tokens),
            rollout_log_probs=padded(log_probs, torch.float64).masked_fill(~tokens.loss_mask, 0.0),
            rewards=torch.tensor([sample.reward for sample in samples], dtype=torch.float64),
            scores=torch.tensor([sample.score for sample in samples], dtype=torch.float64),
            excluded=torch.tensor([sample.excluded for sample in samples]),
            group_ids=torch.tensor([sample.group for sample in samples]),
            index_in_group=_index_in_group([sample.group for sample in samples]),
            prompt_ids=torch.tensor([sample.prompt.record.index for sample in samples]),
            weight_versions=torch.tensor([s.response.weight_versions for s in samples]),
            truncated=torch.tensor([s.response.finish_reason == "length" for s in samples]),
            timed_out=torch.tensor([sample.timed_out for sample in samples]),
            killed=torch.tensor([sample.killed for sample in samples]),
        )

    @property
    def num_generated_tokens(self) -> Tensor:
        """[B] int64 tokens that the policy generated, over all turns of a response."""
        return self.loss_mask.sum(1)

    def name(self, row: int) -> str:
        """How messages call a response: by its place in its group, and its prompt's record."""
        place, prompt = int(self.index_in_group[row]), int(self.prompt_ids[row])
        return f"response {place} to prompt {prompt}"


@dataclass(frozen=True)
class TrainingBatch(RolloutBatch):
    """Responses and what the loss makes of each; see `training.rl_step`."""

    advantages: Tensor
    """[B] float64: of the whole response; 0 for excluded ones."""
    positive: Tensor
    """[B] bool: correct, so that its tokens span the subspace instead of being weighted."""
    has_loss: Tensor
    """[B] bool: the loss may have a gradient."""
    coefficients: Tensor
    """[B] float64: what each generated token counts in the loss of its mini-batch, whose
    denominators over all replicas are inside; 0 for excluded responses."""


def _index_in_group(groups: Sequence[int]) -> Tensor:
    """[B] int64 how many earlier rows have the same group."""
    seen: Counter[int] = Counter()
    places = []
    for group in groups:
        places.append(seen[group])
        seen[group] += 1
    return torch.tensor(places, dtype=torch.int64)
