"""What every rollout engine takes and returns: token ids in, token ids out.

Engines stand around engines: episodes of an environment around what generates one turn, the log of
finished groups around both. `engines/factory.py` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

from megatron_resrl.data.prompts import Prompt, PromptRecord


class SamplingSettings(Protocol):
    """`RolloutConfig`, or the settings of an evaluation's set."""

    @property
    def max_response_length(self) -> int:
        """Largest number of response tokens."""

    @property
    def temperature(self) -> float:
        """Divides the logits; 0: the most likely token."""

    @property
    def top_p(self) -> float:
        """Keep the smallest set of tokens with at least this mass."""

    @property
    def top_k(self) -> int:
        """Keep the k most likely tokens; 0: all."""


@dataclass(frozen=True)
class SamplingParams:
    """How responses are sampled."""

    max_new_tokens: int
    """Largest number of response tokens."""
    stop_token_ids: tuple[int, ...]
    """Tokens that end a response; its last token is then one of them."""
    n: int = 1
    """Responses per prompt."""
    temperature: float = 1.0
    """Divides the logits; 0: the most likely token."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with at least this mass."""
    top_k: int = 0
    """Keep the k most likely tokens; 0: all."""

    @classmethod
    def of(
        cls, settings: SamplingSettings, stop_token_ids: tuple[int, ...], n: int
    ) -> SamplingParams:
        """How the settings of a rollout or of an evaluation have `n` responses sampled."""
        return cls(
            max_new_tokens=settings.max_response_length,
            stop_token_ids=stop_token_ids,
            n=n,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
        )


@dataclass(frozen=True)
class Opening:
    """What an environment said before the first turn, at the end of the prompt."""

    text: str
    prompt_ids: tuple[int, ...]
    """The whole prompt, in the place of the question's own tokens."""


@dataclass(frozen=True)
class Response:
    """One sampled response: one turn of the policy, or several with an environment's messages."""

    token_ids: tuple[int, ...]
    """At least one token; ends with a stop token if `finish_reason` is "stop"."""
    log_probs: tuple[float, ...]
    """Log-probability of each token under the distribution of sampling (temperature and
    truncation applied); 0 for tokens of an environment."""
    finish_reason: Literal["stop", "length"]
    """Why the response ended."""
    response_mask: tuple[bool, ...] | None = None
    """Whether the policy generated each token; None: all. Tokens of an environment are context, no
    part of the loss or of any statistic."""
    weight_versions: tuple[int, int] = (0, 0)
    """Versions of the weights that generated the first and the last token: the number of training
    steps taken before."""
    score: float | None = None
    """The environment's verdict; None: a grader decides."""
    opening: Opening | None = None
    """The same for all responses of a group; None: the prompt is as in the question's file."""
    failure: str | None = None
    """How the environment failed, and ended the episode with it; see `running.Reason`."""

    def prompt_ids(self, question: tuple[int, ...]) -> tuple[int, ...]:
        """The tokens before the response: the opening's, otherwise those of the question."""
        return question if self.opening is None else self.opening.prompt_ids

    @property
    def num_generated_tokens(self) -> int:
        """Number of tokens that the policy generated."""
        return len(self.token_ids) if self.response_mask is None else sum(self.response_mask)

    @property
    def last_turn(self) -> tuple[int, ...]:
        """The tokens after the last message of an environment: the final answer."""
        if self.response_mask is None or all(self.response_mask):
            return self.token_ids
        return self.token_ids[len(self.token_ids) - self.response_mask[::-1].index(False) :]


OnGroup = Callable[[int, list[Response]], None]
"""(place of the prompt in the request, all its responses): called on global rank 0 alone, once for
each prompt, as soon as its last response is there; from any thread, one call at a time."""


class TrainingRound(NamedTuple):
    """Names a part of a training step's rollouts, so that a recording or a log can find it."""

    step: int
    number: int
    """0: the step's own prompts; r: round r of dynamic sampling."""


@dataclass(frozen=True)
class GenerationRequest:
    """The responses that a caller wants. The same on all ranks but for `on_group`."""

    prompts: Sequence[Sequence[int]]
    """Token ids of each prompt."""
    sampling: SamplingParams
    """How responses are sampled; with an environment `max_new_tokens` bounds all turns together."""
    seed: tuple[int, ...]
    """Names the random numbers, e.g. (run seed, stream, step). Sample j of prompt i uses numbers
    keyed by (*seed, indices[i], j), whatever the layout and the batching; an engine that cannot
    promise that says so."""
    indices: Sequence[int] | None = None
    """One for each prompt, so that a part of a batch draws what the whole would; None: by place."""
    on_group: OnGroup | None = None
    """Called with each finished group."""
    records: Sequence[PromptRecord] = ()
    """The question behind each prompt; only environments read them."""
    training_round: TrainingRound | None = None
    """What the responses are for; None: not for a training step."""

    @classmethod
    def of_prompts(
        cls,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        seed: tuple[int, ...],
        training_round: TrainingRound | None = None,
    ) -> GenerationRequest:
        """A request for responses to questions of a data file."""
        return cls(
            [prompt.token_ids for prompt in prompts],
            sampling,
            seed,
            records=[prompt.record for prompt in prompts],
            training_round=training_round,
        )

    @property
    def prompt_indices(self) -> Sequence[int]:
        """The second last part of the key of every prompt's random numbers."""
        return range(len(self.prompts)) if self.indices is None else self.indices

    def of_round(self, training_round: TrainingRound) -> GenerationRequest:
        """The same request under a name that a log finds it by."""
        return replace(self, training_round=training_round)

    def select(self, places: Sequence[int], on_group: OnGroup | None) -> GenerationRequest:
        """The request for some of the prompts, which draw what they would in the whole one.

        Args:
            places: Places of the prompts in this request.
            on_group: Called with places in the new request.
        """
        return replace(
            self,
            prompts=[self.prompts[place] for place in places],
            indices=[self.prompt_indices[place] for place in places],
            records=[self.records[place] for place in places] if self.records else (),
            on_group=on_group,
        )


class PendingRollout(Protocol):
    """Responses that are being generated."""

    def result(self) -> list[list[Response]]:
        """Waits for the responses. Collective over all ranks; called once.

        Returns:
            For each prompt its responses; the same on all ranks.
        """
        ...


@dataclass(frozen=True)
class DeferredRollout:
    """A `PendingRollout` that does its work when the result is asked for."""

    result: Callable[[], list[list[Response]]]


class RolloutEngine(Protocol):
    """Samples responses with the policy's weights of the last `update_weights`."""

    finishes_groups_together: bool = False
    """Whether all groups of a request are finished at the same moment, in batches that are a matter
    of the request: the last bit of a log-probability depends on what is decoded beside it."""

    def begin(self, request: GenerationRequest) -> PendingRollout:
        """Starts sampling. Collective over all ranks.

        If the engine runs asynchronously, generation continues while the caller trains; otherwise
        `result` generates.
        """
        ...

    def generate(self, request: GenerationRequest) -> list[list[Response]]:
        """`begin` and `result` in one."""
        return self.begin(request).result()

    def update_weights(self, version: int) -> dict[str, float]:
        """Makes what is generated from now on use the policy's weights as they are. Collective.

        Responses in flight continue with the new weights.

        Args:
            version: Training steps taken so far.

        Returns:
            Numbers for the step log, e.g. `sync/gb_per_s`; the same on all ranks.
        """
        ...

    def sleep(self) -> None:
        """Frees the devices shared with training; nothing is in flight. Collective."""
        ...

    def close(self) -> None:
        """Ends what the engine started. Not collective; called on every rank, after errors too."""
        ...


class WrappingEngine(RolloutEngine):
    """An engine around another: everything but `begin` is the inner engine's."""

    def __init__(self, engine: RolloutEngine) -> None:
        """
        Args:
            engine: The inner engine.
        """
        self.engine = engine
        self.finishes_groups_together = engine.finishes_groups_together

    def update_weights(self, version: int) -> dict[str, float]:
        """See `RolloutEngine.update_weights`."""
        return self.engine.update_weights(version)

    def sleep(self) -> None:
        """See `RolloutEngine.sleep`."""
        self.engine.sleep()

    def close(self) -> None:
        """See `RolloutEngine.close`."""
        self.engine.close()
