"""Graded rollouts for the models of `tiny_families`: ragged, of all kinds of groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import tiny_families as tiny
import torch

from megatron_resrl.data.prompts import Prompt, PromptRecord
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.rollout.engine import Response

LENGTHS = ((9, 14, 6, 11), (5, 8, 12, 7), (4, 6, 3, 5), (10, 2, 9, 6))
"""Response tokens of every sample, by group."""
SCORES = ((1, 0, 1, 0), (0, 1, 1, 0), (0, 0, 0, 0), (1, 0, 0, 0))
CAP = 1.2
"""Of a correction: some ratios of `with_engine_log_probs` are above, some below."""
LONGEST = max(max(group) for group in LENGTHS)
THINK_MARKERS = (tiny.VOCABULARY - 2, tiny.VOCABULARY - 1)


def rollouts(*, masked: bool = False) -> tuple[list[Sample], torch.Tensor]:
    """Four groups of four: mixed, mixed, all wrong, one right; and which responses are correct.

    Some responses hold a span of thinking.

    Args:
        masked: Two tokens of every five are not the policy's, as in episodes of several turns.
    """
    generator = torch.Generator().manual_seed(11)

    def draw(count: int) -> list[int]:
        return torch.randint(0, tiny.VOCABULARY - 2, (count,), generator=generator).tolist()

    samples = []
    for group, (lengths, scores) in enumerate(zip(LENGTHS, SCORES, strict=True)):
        record = PromptRecord(group, [{"role": "user", "content": "q"}], "4", "test", {})
        prompt = Prompt(record, tuple(draw(3 + 2 * group)))
        for length, score in zip(lengths, scores, strict=True):
            tokens = draw(length)
            if length > 10:
                tokens[2], tokens[5] = THINK_MARKERS
            mask = tuple(position % 5 not in (2, 3) for position in range(length))
            response = Response(
                tuple(tokens), (0.0,) * length, "length", response_mask=mask if masked else None
            )
            samples.append(Sample(group, prompt, response, "", score, score, False))
    return samples, torch.tensor([bool(sample.score) for sample in samples])


def with_engine_log_probs(samples: Sequence[Sample]) -> list[Sample]:
    """The same samples from an engine whose policy is nearly uniform, as a random model's is."""
    generator = torch.Generator().manual_seed(12)
    changed = []
    for sample in samples:
        response = sample.response
        noise = 0.3 * torch.randn(len(response.token_ids), generator=generator)
        log_probs = tuple((noise - math.log(tiny.VOCABULARY)).tolist())
        changed.append(replace(sample, response=replace(response, log_probs=log_probs)))
    return changed
