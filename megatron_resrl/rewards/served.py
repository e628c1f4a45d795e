"""Rewards that a server gives: requests with time-outs and retries, many at a time, kept once."""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import httpx

from megatron_resrl.config.ranges import at_least
from megatron_resrl.errors import SettingError
from megatron_resrl.platform.phases import progress
from megatron_resrl.rewards.grader import Grade, GradingTask, RewardError, describe_sample
from megatron_resrl.rewards.registry import FunctionPlaces

FIRST_WAIT_S = 0.5
"""Before the second try of a request; each further wait is twice as long."""
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""


class NoAnswer(Exception):
    """A server did not say a score; says why."""

    late: bool = False
    """It did not answer in time."""


@dataclass(frozen=True, kw_only=True)
class ServedReward(ABC):
    """Options of a reward that a server gives, and what requests and answers hold."""

    url: str
    """Of the server, e.g. http://host:8000/score."""
    concurrency: Annotated[int, at_least(1)] = 16
    """Requests at a time, per rank."""
    tries: Annotated[int, at_least(1)] = 3
    """Of a request that fails; 0.5 s lie between the first two, then twice as long each time."""
    cache: Annotated[int, at_least(0)] = 100_000
    """Scores that a rank keeps, so that the same request is not made again."""
    api_key_env: str | None = None
    """Environment variable with the key that is sent as a bearer token."""

    def __post_init__(self) -> None:
        """Checks the address.

        Raises:
            ValueError: It is none.
        """
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is {self.url!r}: give an address like http://host:8000/score")

    @property
    def address(self) -> str:
        """Where requests are posted."""
        return self.url

    @property
    def together(self) -> int:
        """Responses of a request."""
        return 1

    @abstractmethod
    def content(self, task: GradingTask) -> dict[str, Any]:
        """JSON that asks for one response."""

    def joined(self, contents: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """JSON that asks for `together` responses or fewer."""
        [content] = contents
        return content

    @abstractmethod
    def scores(self, answer: Any, count: int) -> list[float | None]:
        """The scores in an answer; None: nonsense in place of one.

        Raises:
            ValueError, KeyError, TypeError, IndexError: The whole is.
        """


class ServedGrader:
    """Grades by asking a server, in threads of this process. Use it as a context manager.

    Args:
        reward: What to ask.
        name: Of the function, for messages.
        timeout_s: Seconds that a server may take for one try.
        places: Of the function, for messages.

    Raises:
        SettingError: There is no key where the options say.
    """

    def __init__(
        self, reward: ServedReward, name: str, timeout_s: float, places: FunctionPlaces
    ) -> None:
        self._reward = reward
        self._name = name
        self._client = httpx.Client(
            headers=_key_header(reward.api_key_env, f"{places.options}.api_key_env"),
            timeout=timeout_s,
            limits=httpx.Limits(max_connections=reward.concurrency),
        )
        self._known: OrderedDict[str, float] = OrderedDict()

    def __enter__(self) -> ServedGrader:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def grade(self, tasks: Sequence[GradingTask]) -> list[Grade]:
        """Grades responses; equal requests are made once.

        Args:
            tasks: Any number.

        Returns:
            Their grades, in order. A response that gets no score, after all tries, has the score 0
            and is `timed_out` if the last try was, otherwise `unanswered`.

        Raises:
            RewardError: The server refuses a request.
        """
        keys = [_key(self._reward.content(task)) for task in tasks]
        first = dict(zip(reversed(keys), reversed(tasks), strict=True))
        grades = {
            key: Grade(self._known[key], timed_out=False) for key in first if key in self._known
        }
        new = [key for key in dict.fromkeys(keys) if key not in grades]
        size = self._reward.together
        batches = [new[start : start + size] for start in range(0, len(new), size)]
        threads = ThreadPoolExecutor(self._reward.concurrency)
        try:
            asked = threads.map(lambda batch: self._ask([first[key] for key in batch]), batches)
            for batch, found in zip(batches, asked, strict=True):
                grades |= dict(zip(batch, found, strict=True))
                progress(len(grades), len(first))
        finally:
            threads.shutdown(cancel_futures=True)
        self._keep({key: grades[key] for key in new})
        return [grades[key] for key in keys]

    def check_ground_truths(self, values: Sequence[Any]) -> list[str | None]:
        """Accepts all: the server knows what it needs."""
        return [None for _ in values]

    def _ask(self, tasks: Sequence[GradingTask]) -> list[Grade]:
        """The grades of the responses of one request."""
        content = self._reward.joined([self._reward.content(task) for task in tasks])
        try:
            answer = self._answer(content, tasks[0])
        except NoAnswer as error:
            return [Grade(0.0, timed_out=error.late, unanswered=not error.late) for _ in tasks]
        try:
            scores = self._reward.scores(answer.json(), len(tasks))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            scores = [None] * len(tasks)
        return [
            Grade(0.0 if score is None else score, timed_out=False, unanswered=score is None)
            for score in scores
        ]

    def _answer(self, content: dict[str, Any], task: GradingTask) -> httpx.Response:
        failure = NoAnswer()
        for number in range(self._reward.tries):
            if number:
                time.sleep(FIRST_WAIT_S * 2 ** (number - 1))
            try:
                answer = self._client.post(self._reward.address, json=content)
            except httpx.HTTPError as error:
                failure = NoAnswer(str(error) or type(error).__name__)
                failure.late = isinstance(error, httpx.TimeoutException)
                continue
            if answer.is_success:
                return answer
            failure = NoAnswer(f"status {answer.status_code}")
            if answer.status_code not in _AGAIN:
                raise RewardError(
                    f"the reward function {self._name}: {self._reward.address} refuses a request "
                    f"with status {answer.status_code}, {answer.text[:200]!r}; correct the options "
                    f"of the function, or the server\n{describe_sample(task)}"
                )
        raise failure

    def _keep(self, grades: dict[str, Grade]) -> None:
        for key, grade in grades.items():
            if not grade.timed_out and not grade.unanswered:
                self._known[key] = grade.score
        while len(self._known) > self._reward.cache:
            self._known.popitem(last=False)


def _key_header(variable: str | None, setting: str) -> dict[str, str]:
    """The header with the key of an environment variable; None: none."""
    if variable is None:
        return {}
    if not (key := os.environ.get(variable)):
        raise SettingError(setting, variable, "there is no such environment variable", "export it")
    return {"Authorization": f"Bearer {key}"}


def _key(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, default=str)
