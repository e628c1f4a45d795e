"""What every rollout engine takes and returns: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """One sampled response: one turn of the policy, or several with what an environment said."""

    token_ids: tuple[int, ...]
    """At least one token; ends with a stop token if `finish_reason` is "stop"."""
    log_probs: tuple[float, ...]
    """Of each token under the distribution it was drawn from (temperature and truncation in); 0 for
    tokens that the policy did not draw."""
    finish_reason: Literal["stop", "length"]
    """Why it ended."""
    response_mask: tuple[bool, ...] | None = None
    """Whether the policy drew each token; None: all. The others are context, no part of the loss or
    of any statistic."""
    weight_versions: tuple[int, int] = (0, 0)
    """Optimizer-step versions of the weights that drew the first and the last token: the number of
    training steps taken before."""
    score: float | None = None
    """The environment's verdict; None: a grader decides."""

    @property
    def drawn(self) -> int:
        """Number of tokens that the policy drew."""
        return len(self.token_ids) if self.response_mask is None else sum(self.response_mask)

    @property
    def last_turn(self) -> tuple[int, ...]:
        """The tokens after the last one that the policy did not draw: its final answer."""
        if self.response_mask is None or all(self.response_mask):
            return self.token_ids
        return self.token_ids[len(self.token_ids) - self.response_mask[::-1].index(False) :]


OnGroup = Callable[[int, list[Response]], None]
"""(prompt's index, all its responses): called on global rank 0 alone, once for each prompt, as soon
as its last response is there; from any thread, one at a time."""


class PendingRollout(Protocol):
    """Responses that are being generated."""

    def result(self) -> list[list[Response]]:
        """Waits for them. Collective over all ranks; called once.

        Returns:
            For each prompt its responses; the same on all ranks.
        """
        ...


class RolloutEngine(Protocol):
    """Samples responses with the policy's weights of the last `update_weights`."""

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        seed: Sequence[int],
        indices: Sequence[int] | None = None,
        on_group: OnGroup | None = None,
    ) -> PendingRollout:
        """Starts sampling `sampling.n` responses for each prompt. Collective over all ranks.

        An engine that can goes on while the caller trains; another generates in `result`.

        Args:
            prompts: Token ids, the same on all ranks.
            sampling: How to draw.
            seed: Names the random numbers, e.g. (run seed, stream, step). Sample j of prompt i uses
                numbers keyed by (*seed, i, j), whatever the layout and the batching; an engine
                that cannot promise that says so.
            indices: Used instead of i, one for each prompt, so that a part of a batch draws what
                the whole would.
            on_group: Told of finished groups; by i.
        """
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        seed: Sequence[int],
        indices: Sequence[int] | None = None,
        on_group: OnGroup | None = None,
    ) -> list[list[Response]]:
        """`begin` and `result` in one."""
        pending = self.begin(prompts, sampling, seed=seed, indices=indices, on_group=on_group)
        return pending.result()

    def update_weights(self, version: int) -> dict[str, float]:
        """Makes what is generated from now on use the policy's weights as they are. Collective.

        Responses that are being generated go on with them.

        Args:
            version: Training steps taken so far.

        Returns:
            Numbers for the step log, e.g. `sync/gb_per_s`; the same on all ranks.
        """
        ...

    def sleep(self) -> None:
        """Gives shared devices free for training; nothing is being generated. Collective."""
        ...

    def close(self) -> None:
        """Ends what the engine started. Not collective; called on every rank, after errors too."""
        ...
