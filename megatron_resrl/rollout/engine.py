"""What every rollout engine takes and returns: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class SamplingParams:
    """How responses are drawn."""

    max_new_tokens: int
    """Largest number of response tokens."""
    stop_token_ids: tuple[int, ...]
    """Tokens that end a response; the one drawn is its last token."""
    n: int = 1
    """Responses per prompt."""
    temperature: float = 1.0
    """Divides the logits; 0: the most likely token."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with at least this mass."""
    top_k: int = 0
    """Keep the k most likely tokens; 0: all."""


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    token_ids: tuple[int, ...]
    """At least one token; ends with a stop token if `finish_reason` is "stop"."""
    log_probs: tuple[float, ...]
    """Of each token under the distribution it was drawn from (temperature and truncation in)."""
    finish_reason: Literal["stop", "length"]
    """Why it ended."""


class RolloutEngine(Protocol):
    """Samples responses with the policy's current weights."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingParams, *, seed: Sequence[int]
    ) -> list[list[Response]]:
        """Samples `sampling.n` responses for each prompt. Collective over all ranks.

        Args:
            prompts: Token ids, the same on all ranks.
            sampling: How to draw.
            seed: Names the random numbers, e.g. (run seed, step). Sample j of prompt i uses
                numbers keyed by (*seed, i, j), whatever the layout and the batching.

        Returns:
            For each prompt its responses; the same on all ranks.
        """
        ...

    def update_weights(self) -> None:
        """Makes the next `generate` use the policy's weights as they are now. Collective."""
        ...
