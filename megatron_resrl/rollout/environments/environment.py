"""The protocol of environments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from megatron_resrl.data.records import PromptRecord


@dataclass(frozen=True)
class Observation:
    """What an environment says to one action."""

    text: str = ""
    """The next message to the policy; not shown after the last turn."""
    done: bool = False
    """The episode is over."""
    score: float | None = None
    """The episode's score if this was its last turn, for whatever reason; None: a grader decides,
    from the text of that turn."""


class Environment(Protocol):
    """One episode. A new object is made for every sample, with `rollout.environment_options`.

    One that holds something (a connection, a process) also has `close()`, which is called once,
    after the episode has ended.
    """

    role: Literal["tool", "user"]
    """Who says the observations, in the chat template. An attribute of the class will do."""

    def reset(self, record: PromptRecord, seed: tuple[int, ...]) -> str | None:
        """Begins the episode.

        Args:
            record: The question: messages, ground truth and further columns of its row.
            seed: Names the episode's random numbers, e.g. for `numpy.random.default_rng(seed)`;
                the same for all samples of a group, and whenever the same step is run again.

        Returns:
            The opening, which is shown at the end of the prompt; it has to be the same for all
            samples of a group. None: the prompt of the data file is all.
        """
        ...

    def step(self, action: str) -> Observation:
        """Answers a turn of the policy.

        Args:
            action: Its text, decoded without special tokens. The last turn may be cut off by the
                token limit.
        """
        ...
