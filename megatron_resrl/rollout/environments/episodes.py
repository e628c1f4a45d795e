"""Episodes: turns of the policy and observations of an environment become one response.

Episodes whose environment has answered take their turn together, in a wave; each environment lives
on one rank. The tokens of observations are context (`response_mask` False); a response never ends
with them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch.distributed as dist

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.rollout.engine import (
    DeferredRollout,
    GenerationRequest,
    Opening,
    PendingRollout,
    Response,
    RolloutEngine,
    WrappingEngine,
)
from megatron_resrl.rollout.environments.chat import ObservationTokens
from megatron_resrl.rollout.environments.episode import Episode
from megatron_resrl.rollout.environments.running import (
    AT_ONCE,
    Calls,
    EnvironmentFailed,
    Failure,
)
from megatron_resrl.rollout.environments.seats import Seat, Seats

logger = logging.getLogger(__name__)

OpenPrompt = Callable[[PromptRecord, str], tuple[int, ...]]
"""(question, opening) -> token ids of the prompt; raises ValueError where there is none."""

_TURN = 2**32
"""What a turn adds to the index that names its random numbers; keys of episodes are smaller."""


@dataclass(frozen=True)
class EpisodeSettings:
    """How episodes are played."""

    name: str
    """Of the environment, for errors."""
    max_turns: int
    """Turns of the policy in one episode."""
    patience_s: float
    """Seconds that episodes wait for the environments of others before they go on."""
    on_failure: Literal["stop", "zero"]
    """Whether an environment that fails ends the run, or its episode with a score of 0."""


class EpisodeEngine(WrappingEngine):
    """An engine whose responses are episodes: turns of another engine, answered by an environment.

    An episode ends when the environment says so, after `max_turns` turns, or when the token limit
    leaves no room: a turn is cut off there, and an observation that does not fit, with one token
    after it, is not shown. The last two are finish reason "length".
    """

    def __init__(
        self,
        engine: RolloutEngine,
        seats: Seats,
        tokenizer: Any,
        observations: ObservationTokens,
        open_prompt: OpenPrompt,
        settings: EpisodeSettings,
    ) -> None:
        """
        Args:
            engine: Generates the turns.
            seats: Where environments live.
            tokenizer: Decodes turns for the environment.
            observations: Encodes the environment's messages.
            open_prompt: Makes the prompt of an environment's opening.
            settings: How episodes are played.
        """
        super().__init__(engine)
        # The last response of a group may need more turns than the groups beside it.
        self.finishes_groups_together = False
        self.seats = seats
        self.tokenizer = tokenizer
        self.observations = observations
        self.open_prompt = open_prompt
        self.settings = settings

    def begin(self, request: GenerationRequest) -> PendingRollout:
        """See `RolloutEngine.begin`; plays when the result is asked for.

        Sample j of prompt i draws turn t with the engine's numbers keyed by
        (*seed, t * 2^32 + i * sampling.n + j, 0), whatever other episodes are played beside it.

        Raises:
            EnvironmentFailed: From `result`, on all ranks.
        """
        return DeferredRollout(lambda: _Rollout(self, request).play())

    def close(self) -> None:
        """See `RolloutEngine.close`."""
        try:
            self.seats.close()
        finally:
            super().close()


class _Rollout:
    """The episodes of one request. Every rank makes the same decisions, from the same answers."""

    def __init__(self, engine: EpisodeEngine, request: GenerationRequest) -> None:
        self._engine = engine
        self._settings = engine.settings
        self._request = request
        self._episodes = _episodes(request)
        self._rank = dist.get_rank()
        self._taken: dict[int, Seat] = {}
        """Place of an episode -> its seat, of those of this rank."""
        seats = engine.seats
        self._calls = Calls(seats.timeout_s, max(AT_ONCE, seats.count or 0))
        self._openings: dict[int, tuple[str | None, Opening | None]] = {}
        """Group -> what its first environment began with, and the prompt of that."""
        self._finished: dict[int, list[Response]] = {}

    def play(self) -> list[list[Response]]:
        """All responses, see `PendingRollout.result`."""
        while any(each.stage != "over" for each in self._episodes):
            self._seat_waiting()
            self._take_in(self._answers())
            if wave := [place for place, each in enumerate(self._episodes) if self._may_turn(each)]:
                self._take_turns(wave)
            self._finish_groups()
        return [self._finished[group] for group in range(len(self._request.prompts))]

    def _seat_waiting(self) -> None:
        """Begins episodes while their rank has seats."""
        waiting: dict[int, list[int]] = {}
        busy: Counter[int] = Counter()
        for place, episode in enumerate(self._episodes):
            if episode.stage == "waiting":
                waiting.setdefault(episode.owner, []).append(place)
            # One that is lost has given its seat back when it is ready.
            elif episode.stage != "over" and not (episode.stage == "ready" and episode.lost):
                busy[episode.owner] += 1
        count = self._engine.seats.count
        for rank, places in waiting.items():
            free = len(places) if count is None else count - busy[rank]
            for place in places[: max(0, free)]:
                self._reset(place)

    def _reset(self, place: int) -> None:
        episode = self._episodes[place]
        episode.stage = "resetting"
        if episode.owner == self._rank:
            seat = self._taken[place] = self._engine.seats.take()
            seed = (*self._request.seed, self._request.prompt_indices[episode.group])
            self._calls.begin(place, partial(seat.reset, episode.record, seed))

    def _step(self, place: int) -> None:
        episode = self._episodes[place]
        episode.stage = "stepping"
        if episode.owner == self._rank:
            action = self._engine.tokenizer.decode(episode.turn, skip_special_tokens=True)
            self._calls.begin(place, partial(self._taken[place].step, action))

    def _close(self, place: int) -> None:
        episode = self._episodes[place]
        episode.stage = "closing"
        if episode.owner == self._rank:
            self._calls.begin(place, self._taken.pop(place).close)

    def _answers(self) -> dict[int, Any]:
        """What environments have answered since the last time, of all ranks, by place. Collective.

        Waits until all have, but no longer than the episodes' patience.
        """
        answers: dict[int, Any] = {}
        for of_rank in gather_objects(self._calls.collect(self._settings.patience_s)):
            answers |= of_rank
        return dict(sorted(answers.items()))

    def _take_in(self, answers: dict[int, Any]) -> None:
        """Brings episodes to where the answers of their environments lead."""
        failures = {}
        for place, answer in answers.items():
            episode = self._episodes[place]
            stage = episode.stage
            if stage == "resetting" and not isinstance(answer, Failure):
                answer = self._opened(episode, answer)
            if isinstance(answer, Failure):
                failures[place] = f"{answer.problem} ({self._call_of(episode)})"
                if stage != "closing":  # Its score stays.
                    episode.fail(answer.reason)
            elif stage == "stepping":
                self._observe(episode, answer)
            if stage == "closing":
                episode.stage = "ready" if episode.lost else "over"
            elif isinstance(answer, Failure) or episode.finish_reason is not None:
                self._close(place)
            else:
                episode.stage = "ready"
        if failures:
            self._report(list(failures.values()))

    def _report(self, failures: Sequence[str]) -> None:
        """Ends the run because of environments that failed, or says that their episodes score 0.

        Raises:
            EnvironmentFailed: On all ranks, with the first of them.
        """
        first = f"rollout.environment = {self._settings.name!r} {failures[0]}"
        if self._settings.on_failure == "stop":
            raise EnvironmentFailed(first)
        if self._rank == 0:
            count = "" if len(failures) == 1 else f", and {len(failures) - 1} more failed"
            logger.warning("%s%s: the episode scores 0", first, count)

    def _call_of(self, episode: Episode) -> str:
        if episode.stage == "stepping":
            return f"step, turn {episode.turns - 1} of {episode.where}"
        return f"{'reset' if episode.stage == 'resetting' else 'close'}, {episode.where}"

    def _opened(self, episode: Episode, text: str | None) -> Failure | None:
        """Gives an episode its opening; a failure if it is not that of its group.

        Raises:
            EnvironmentFailed: No prompt can be made of it.
        """
        if episode.group not in self._openings:
            opening = None if text is None else self._opening(episode, text)
            self._openings[episode.group] = text, opening
            for each in self._episodes:
                if each.group == episode.group and opening is not None:
                    each.opening, each.prompt_ids = opening, opening.prompt_ids
        expected, _ = self._openings[episode.group]
        if text == expected:
            return None
        problem = f"began with {text!r}, and with {expected!r} for another sample of the group"
        return Failure("malformed", problem)

    def _opening(self, episode: Episode, text: str) -> Opening:
        text = self._engine.observations.plain(text)
        try:
            return Opening(text, self._engine.open_prompt(episode.record, text))
        except ValueError as error:
            name, where = self._settings.name, self._call_of(episode)
            raise EnvironmentFailed(
                f"rollout.environment = {name!r} made no usable prompt: {error} ({where})"
            ) from error

    def _observe(self, episode: Episode, observation: Any) -> None:
        shown = self._engine.observations.encode(observation.text, episode.turn)
        last = episode.turns == self._settings.max_turns
        episode.observe(observation, shown, self._request.sampling.max_new_tokens, last=last)

    def _may_turn(self, episode: Episode) -> bool:
        """Whether the policy goes on: where an environment failed at once, with the opening that
        others of the group may still bring."""
        if episode.stage != "ready" or not episode.lost:
            return episode.stage == "ready"
        members = [each for each in self._episodes if each.group == episode.group]
        return all(each.stage not in ("waiting", "resetting") for each in members)

    def _take_turns(self, wave: Sequence[int]) -> None:
        """One call of the engine. An episode with less room than the others is cut afterwards."""
        episodes = [self._episodes[place] for place in wave]
        sampling = self._request.sampling
        room = [sampling.max_new_tokens - len(episode.token_ids) for episode in episodes]
        request = GenerationRequest(
            [(*episode.prompt_ids, *episode.token_ids) for episode in episodes],
            replace(sampling, n=1, max_new_tokens=max(room)),
            self._request.seed,
            indices=[episode.turns * _TURN + episode.key for episode in episodes],
        )
        turns = self._engine.engine.generate(request)
        for place, left, (response,) in zip(wave, room, turns, strict=True):
            episode = self._episodes[place]
            lost = episode.lost
            episode.take_turn(response, left)
            if lost:
                episode.finish_reason, episode.stage = "length", "over"
            else:
                self._step(place)

    def _finish_groups(self) -> None:
        """Keeps groups without a sample in flight, and calls `on_group` for them."""
        members: dict[int, list[Episode]] = {}
        for episode in self._episodes:
            members.setdefault(episode.group, []).append(episode)
        for group, samples in members.items():
            if group in self._finished or any(each.finish_reason is None for each in samples):
                continue
            self._finished[group] = [each.response() for each in samples]
            if self._request.on_group and self._rank == 0:
                self._request.on_group(group, self._finished[group])


def _episodes(request: GenerationRequest) -> list[Episode]:
    """All episodes of a request, dealt to the ranks."""
    ranks, samples = dist.get_world_size(), request.sampling.n
    episodes: list[Episode] = []
    for group, (prompt_ids, record, key) in enumerate(
        zip(request.prompts, request.records, request.prompt_indices, strict=True)
    ):
        for sample in range(samples):
            episodes.append(
                Episode(
                    group,
                    tuple(prompt_ids),
                    record,
                    key=key * samples + sample,
                    where=f"sample {sample} of prompt {record.index} of {record.data_source}",
                    owner=len(episodes) % ranks,
                )
            )
    return episodes
