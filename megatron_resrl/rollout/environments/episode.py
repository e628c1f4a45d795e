"""One episode: turns of the policy and observations of an environment become a response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from megatron_resrl.data.records import PromptRecord
from megatron_resrl.rollout.engine import Opening, Response
from megatron_resrl.rollout.environments.environment import Observation
from megatron_resrl.rollout.environments.running import Reason

Stage = Literal["waiting", "resetting", "ready", "stepping", "closing", "over"]
"""`waiting` for a seat; `resetting`, `stepping`, `closing`: the environment is called; `ready` for
a turn of the policy."""


@dataclass
class Episode:
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
    stage: Stage = "waiting"
    opening: Opening | None = None
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    first_version: int = 0
    last_version: int = 0
    turns: int = 0
    """Taken by the policy."""
    turn: list[int] = field(default_factory=list)
    """Tokens of the turn just taken."""
    cut: bool = False
    """The token limit ended it."""
    score: float | None = None
    finish_reason: Literal["stop", "length"] | None = None
    failure: Reason | None = None

    @property
    def lost(self) -> bool:
        """Its environment failed before the first turn, which the policy takes all the same: a
        response has at least one token."""
        return self.failure is not None and not self.turns

    def take_turn(self, response: Response, room: int) -> None:
        """Appends a turn of the policy, cut off where there is room for `room` tokens only."""
        if not self.turns:
            self.first_version = response.weight_versions[0]
        self.last_version = response.weight_versions[1]
        self.turns += 1
        self.turn = list(response.token_ids[:room])
        self.cut = response.finish_reason == "length" or len(response.token_ids) > room
        self._extend(self.turn, response.log_probs[:room], generated=True)

    def observe(
        self, observation: Observation, shown: Sequence[int], limit: int, *, last: bool
    ) -> None:
        """Appends an observation, or ends.

        Args:
            observation: The answer to the turn just taken.
            shown: Its tokens.
            limit: Tokens that the response may have.
            last: The turn was the last that the episode may have.
        """
        self.score = observation.score
        if self.cut or (last and not observation.done):
            self.finish_reason = "length"
        elif observation.done:
            self.finish_reason = "stop"
        elif len(self.token_ids) + len(shown) < limit:
            self._extend(shown, [0.0] * len(shown), generated=False)
        else:
            self.finish_reason = "length"

    def fail(self, reason: Reason) -> None:
        """Ends it, with a score of 0, or before its first turn has it end with that."""
        self.failure, self.score = reason, 0.0
        if self.turns:
            self.finish_reason = "length"

    def response(self) -> Response:
        """What it has become."""
        assert self.finish_reason is not None, "an episode in flight is no response yet"
        return Response(
            tuple(self.token_ids),
            tuple(self.log_probs),
            self.finish_reason,
            None if all(self.mask) else tuple(self.mask),
            (self.first_version, self.last_version),
            self.score,
            self.opening,
            self.failure,
        )

    def _extend(
        self, tokens: Sequence[int], log_probs: Sequence[float], *, generated: bool
    ) -> None:
        self.token_ids += tokens
        self.log_probs += log_probs
        self.mask += [generated] * len(tokens)
