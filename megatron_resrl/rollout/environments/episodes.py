"""Episodes: turns of the policy and observations of an environment become one response.

All unfinished episodes take their turn together, then their environments answer, each on one rank.
The tokens of observations are context (`response_mask` False); a response never ends with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch.distributed as dist

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.rollout.engine import (
    DeferredRollout,
    GenerationRequest,
    OnGroup,
    Opening,
    PendingRollout,
    Response,
    RolloutEngine,
    SamplingParams,
    WrappingEngine,
)
from megatron_resrl.rollout.environments.chat import ObservationTokens
from megatron_resrl.rollout.environments.environment import Environment, Observation
from megatron_resrl.rollout.environments.running import (
    Call,
    EnvironmentFailed,
    failure_of,
    run_calls,
)

OpenPrompt = Callable[[PromptRecord, str], tuple[int, ...]]
"""(question, opening) -> token ids of the prompt; raises ValueError where there is none."""


@dataclass
class _Episode:
    """One sample in flight, the same on all ranks."""

    group: int
    """Place of the prompt in the request."""
    prompt_ids: tuple[int, ...]
    """With the opening."""
    record: PromptRecord
    key: int
    """Names its random numbers: index of the prompt * samples of a prompt + sample."""
    where: str
    """Names it in errors."""
    owner: int
    """The rank that has its environment."""
    opening: Opening | None = None
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    first_version: int = 0
    last_version: int = 0
    turn: list[int] = field(default_factory=list)
    """Tokens of the turn just taken."""
    cut: bool = False
    """The token limit ended it."""
    score: float | None = None
    finish_reason: Literal["stop", "length"] | None = None

    def extend(self, tokens: Sequence[int], log_probs: Sequence[float], *, generated: bool) -> None:
        self.token_ids += tokens
        self.log_probs += log_probs
        self.mask += [generated] * len(tokens)

    def response(self) -> Response:
        assert self.finish_reason is not None, "an episode in flight is no response yet"
        return Response(
            tuple(self.token_ids),
            tuple(self.log_probs),
            self.finish_reason,
            None if all(self.mask) else tuple(self.mask),
            (self.first_version, self.last_version),
            self.score,
            self.opening,
        )


class EpisodeEngine(WrappingEngine):
    """An engine whose responses are episodes: turns of another engine, answered by an environment.

    An episode ends when the environment says so, after `max_turns` turns, or when the token limit
    leaves no room: a turn is cut off there, and an observation that does not fit, with one token
    after it, is not shown. The last two are finish reason "length".

    Attributes:
        max_turns: Turns of the policy in one episode.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        environment: Callable[[], Environment],
        tokenizer: Any,
        observations: ObservationTokens,
        *,
        open_prompt: OpenPrompt,
        name: str,
        max_turns: int,
        timeout_s: float,
    ) -> None:
        """
        Args:
            engine: Generates the turns.
            environment: Makes the environment of one episode.
            tokenizer: Decodes turns for the environment.
            observations: Encodes the environment's messages.
            open_prompt: Makes the prompt of an environment's opening.
            name: Of the environment, for errors.
            max_turns: Turns of the policy in one episode.
            timeout_s: Seconds that each call of an environment may take.
        """
        super().__init__(engine)
        # The last response of a group may need more turns than the groups beside it.
        self.finishes_groups_together = False
        self._environment = environment
        self._tokenizer = tokenizer
        self._observations = observations
        self._open_prompt = open_prompt
        self._name = name
        self.max_turns = max_turns
        self._timeout_s = timeout_s

    def begin(self, request: GenerationRequest) -> PendingRollout:
        """See `RolloutEngine.begin`; plays when the result is asked for.

        Sample j of prompt i draws turn t with the engine's numbers keyed by
        (*seed, t, i * sampling.n + j, 0), whatever other episodes are played beside it.

        Raises:
            EnvironmentFailed: From `result`, on all ranks.
        """
        return DeferredRollout(lambda: self._play(request))

    def _play(self, request: GenerationRequest) -> list[list[Response]]:
        episodes, environments = self._reset(request)
        finished: dict[int, list[Response]] = {}
        for turn in range(self.max_turns):
            running = [episode for episode in episodes if episode.finish_reason is None]
            if not running:
                break
            self._take_turn(running, request.sampling, (*request.seed, turn))
            observations = self._step(running, environments, turn)
            for episode, observation in zip(running, observations, strict=True):
                last = turn == self.max_turns - 1
                self._observe(episode, observation, request.sampling.max_new_tokens, last=last)
            self._close([each for each in running if each.finish_reason is not None], environments)
            self._finish_groups(episodes, finished, request.on_group)
        return [finished[group] for group in range(len(request.prompts))]

    def _reset(self, request: GenerationRequest) -> tuple[list[_Episode], dict[int, Environment]]:
        """Begins all episodes.

        Returns:
            The episodes, and key -> environment of those whose environment is on this rank.
        """
        ranks, samples = dist.get_world_size(), request.sampling.n
        episodes: list[_Episode] = []
        for group, (prompt_ids, record, key) in enumerate(
            zip(request.prompts, request.records, request.prompt_indices, strict=True)
        ):
            for sample in range(samples):
                episodes.append(
                    _Episode(
                        group,
                        tuple(prompt_ids),
                        record,
                        key=key * samples + sample,
                        where=f"sample {sample} of prompt {record.index} of {record.data_source}",
                        owner=len(episodes) % ranks,
                    )
                )

        environments: dict[int, Environment] = {}

        indices = request.prompt_indices

        def reset(episode: _Episode) -> str | None:
            environments[episode.key] = environment = self._environment()
            return _text(environment.reset(episode.record, (*request.seed, indices[episode.group])))

        openings = self._on_owners(
            episodes, lambda each: Call(partial(reset, each), f"reset, {each.where}")
        )
        self._open(episodes, openings)
        return episodes, environments

    def _open(self, episodes: Sequence[_Episode], texts: Sequence[str | None]) -> None:
        """Gives episodes the openings of their environments. The same on all ranks."""
        first: dict[int, tuple[str | None, Opening | None]] = {}
        for episode, text in zip(episodes, texts, strict=True):
            if episode.group not in first:
                opening = None if text is None else self._opening(episode, text)
                first[episode.group] = text, opening
            expected, episode.opening = first[episode.group]
            if text != expected:
                problem = f"began with {text!r}, and with {expected!r} for sample 0 of the group"
                raise failure_of(self._name, f"reset, {episode.where}", problem)
            if episode.opening is not None:
                episode.prompt_ids = episode.opening.prompt_ids

    def _opening(self, episode: _Episode, text: str) -> Opening:
        text = self._observations.plain(text)
        try:
            return Opening(text, self._open_prompt(episode.record, text))
        except ValueError as error:
            where = f"reset, {episode.where}"
            raise failure_of(self._name, where, f"made no usable prompt: {error}") from error

    def _take_turn(
        self, running: Sequence[_Episode], sampling: SamplingParams, seed: tuple[int, ...]
    ) -> None:
        """One call of the engine. An episode with less room than the others is cut afterwards."""
        room = [sampling.max_new_tokens - len(episode.token_ids) for episode in running]
        request = GenerationRequest(
            [(*episode.prompt_ids, *episode.token_ids) for episode in running],
            replace(sampling, n=1, max_new_tokens=max(room)),
            seed,
            indices=[episode.key for episode in running],
        )
        turns = self.engine.generate(request)
        for episode, left, (response,) in zip(running, room, turns, strict=True):
            if not episode.token_ids:
                episode.first_version = response.weight_versions[0]
            episode.last_version = response.weight_versions[1]
            episode.turn = list(response.token_ids[:left])
            episode.cut = response.finish_reason == "length" or len(response.token_ids) > left
            episode.extend(episode.turn, response.log_probs[:left], generated=True)

    def _step(
        self, running: Sequence[_Episode], environments: Mapping[int, Environment], turn: int
    ) -> list[Observation]:
        def call(episode: _Episode) -> Call:
            action = self._tokenizer.decode(episode.turn, skip_special_tokens=True)
            where = f"step, turn {turn} of {episode.where}"
            return Call(lambda: _plain(environments[episode.key].step(action)), where)

        return self._on_owners(running, call)

    def _close(self, ended: Sequence[_Episode], environments: dict[int, Environment]) -> None:
        def call(episode: _Episode) -> Call:
            close = getattr(environments.pop(episode.key), "close", _nothing)
            return Call(close, f"close, {episode.where}")

        self._on_owners(ended, call)

    def _on_owners(self, episodes: Sequence[_Episode], call: Callable[[_Episode], Call]) -> list:
        """Calls each environment on its rank; all ranks get the results, or raise. Collective."""
        rank = dist.get_rank()
        own = [place for place, episode in enumerate(episodes) if episode.owner == rank]
        try:
            calls = [call(episodes[place]) for place in own]
            outcome: Any = run_calls(self._name, calls, self._timeout_s)
        except EnvironmentFailed as error:
            outcome = error
        results: list[Any] = [None] * len(episodes)
        for places, outcome_of_rank in gather_objects((own, outcome)):
            if isinstance(outcome_of_rank, EnvironmentFailed):
                raise outcome_of_rank
            for place, result in zip(places, outcome_of_rank, strict=True):
                results[place] = result
        return results

    def _observe(
        self, episode: _Episode, observation: Observation, limit: int, *, last: bool
    ) -> None:
        episode.score = observation.score
        if episode.cut or (last and not observation.done):
            episode.finish_reason = "length"
        elif observation.done:
            episode.finish_reason = "stop"
        else:
            tokens = self._observations.encode(observation.text, episode.turn)
            if len(episode.token_ids) + len(tokens) < limit:
                episode.extend(tokens, [0.0] * len(tokens), generated=False)
            else:
                episode.finish_reason = "length"

    def _finish_groups(
        self,
        episodes: Sequence[_Episode],
        finished: dict[int, list[Response]],
        on_group: OnGroup | None,
    ) -> None:
        """Adds groups without a sample in flight to `finished`, and calls `on_group` for them."""
        members: dict[int, list[_Episode]] = {}
        for episode in episodes:
            members.setdefault(episode.group, []).append(episode)
        for group, samples in members.items():
            if group in finished or any(each.finish_reason is None for each in samples):
                continue
            finished[group] = [each.response() for each in samples]
            if on_group and dist.get_rank() == 0:
                on_group(group, finished[group])


def _nothing() -> None:
    """In the place of a method that an environment lacks."""


def _text(opening: Any) -> str | None:
    if opening is not None and not (isinstance(opening, str) and opening):
        raise TypeError(f"reset returned {opening!r}, which is neither a text nor None")
    return opening


def _plain(observation: Any) -> Observation:
    """An observation of plain types, as they travel between ranks."""
    if not isinstance(observation, Observation) or not isinstance(observation.text, str):
        raise TypeError(f"step returned {observation!r}, which is not an Observation with a text")
    score = None if observation.score is None else float(observation.score)
    if score is not None and not math.isfinite(score):
        raise ValueError(f"step returned the score {score}; a finite number is right")
    return Observation(observation.text, bool(observation.done), score)
