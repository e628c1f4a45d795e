"""One call of `begin`: its samples, those that are finished, and who is told of whole groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from megatron_resrl.rollout.engine import OnGroup, Response, SamplingParams


@dataclass
class Job:
    """One sample that is wanted."""

    rollout: Rollout
    prompt: int
    sample: int
    failures: int = 0
    """Times that it was lost with its server."""

    def __str__(self) -> str:
        return f"sample {self.sample} of prompt {self.prompt}"


@dataclass
class Rollout:
    """The samples of one call; changed by the pool's thread alone."""

    prompts: Sequence[Sequence[int]]
    sampling: SamplingParams
    seed: tuple[int, ...]
    indices: Sequence[int] | None = None
    """What prompts are called in seeds; None: by their place."""
    on_group: OnGroup | None = None
    error: BaseException | None = None
    """Why it will not be finished."""
    groups_told: int = 0
    _responses: list[list[Response | None]] = field(init=False)
    _missing: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._responses = [[None] * self.sampling.n for _ in self.prompts]
        self._missing = [self.sampling.n for _ in self.prompts]

    @property
    def ended(self) -> bool:
        """Everything is there and told, or never will be."""
        return self.error is not None or self.groups_told == len(self.prompts)

    @property
    def finished(self) -> int:
        """Responses that are there."""
        return len(self.prompts) * self.sampling.n - sum(self._missing)

    def key(self, job: Job) -> tuple[int, ...]:
        """What the random numbers of a sample are named by."""
        prompt = job.prompt if self.indices is None else self.indices[job.prompt]
        return (*self.seed, prompt, job.sample)

    def units(self, size: int) -> list[list[Job]]:
        """Jobs that go to one server together: a prompt's samples, at most `size` of them."""
        samples = range(self.sampling.n)
        return [
            [Job(self, prompt, sample) for sample in samples[first : first + size]]
            for prompt in range(len(self.prompts))
            for first in range(0, self.sampling.n, size)
        ]

    def finish(self, job: Job, response: Response) -> bool:
        """Keeps a response. Returns whether its group is complete."""
        if self._responses[job.prompt][job.sample] is not None:
            return False
        self._responses[job.prompt][job.sample] = response
        self._missing[job.prompt] -= 1
        return self._missing[job.prompt] == 0

    def tell(self, prompt: int, then: Callable[[BaseException | None], None]) -> None:
        """Tells of a complete group; from one thread only.

        Args:
            prompt: Whose group.
            then: Called afterwards with what `on_group` raised, if anything.
        """
        error: BaseException | None = None
        if self.on_group is not None:
            try:
                self.on_group(prompt, self.group(prompt))
            except BaseException as raised:  # Raised again by `result`, on the caller's thread.
                error = raised
        then(error)

    def group(self, prompt: int) -> list[Response]:
        """The responses of a complete group."""
        return [response for response in self._responses[prompt] if response is not None]
