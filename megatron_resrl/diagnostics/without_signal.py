"""What a run says of updates that are left out because there is nothing to learn from."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from megatron_resrl.rollout.collect import Sample

logger = logging.getLogger(__name__)


def causes(samples: Sequence[Sample], max_response_length: int) -> dict[str, str]:
    """Why no response of these whole groups has an advantage, as far as can be seen.

    Args:
        samples: All of an update.
        max_response_length: `rollout.max_response_length`.

    Returns:
        Kind of cause -> what is to be said of it.
    """
    count = len(samples)
    found: dict[str, str] = {}
    cut_off = sum(sample.response.finish_reason == "length" for sample in samples)
    if 2 * cut_off >= count:
        found["cut off"] = (
            f"{_of(cut_off, count)} responses were cut off at rollout.max_response_length = "
            f"{max_response_length}"
        )
    excluded = sum(sample.excluded for sample in samples)
    if 2 * excluded >= count:
        found["masked"] = f"{_of(excluded, count)} are left out by reward.overlong = mask"
    timed_out = sum(sample.timed_out for sample in samples)
    if 2 * timed_out >= count:
        found["timed out"] = f"grading {_of(timed_out, count)} took longer than reward.timeout_s"
    scores = {sample.score for sample in samples}
    if len(scores) == 1:
        score = scores.pop()
        found[f"scores of {score:g}"] = f"all scores are {score:g}"
    elif excluded < count:
        found["equal rewards"] = "the rewards of every group are equal"
    return found


def _of(part: int, count: int) -> str:
    return f"all {count}" if part == count else f"{part} of {count}"


class WithoutSignal:
    """Tells of each cause once, and then how often it came.

    Args:
        max_response_length: `rollout.max_response_length`.
    """

    def __init__(self, max_response_length: int) -> None:
        self._limit = max_response_length
        self._known: set[tuple[str, ...]] = set()
        self._total = 0

    def count(
        self, step: int, samples: Sequence[Sample], left_out: Sequence[Sequence[int]]
    ) -> None:
        """Takes note of the updates that a step left out.

        Args:
            step: Its number.
            samples: Of the step.
            left_out: Indices of the samples of each such update.
        """
        for update in left_out:
            self._total += 1
            why = causes([samples[index] for index in update], self._limit)
            if tuple(why) not in self._known:
                self._known.add(tuple(why))
                logger.warning(
                    "step %d: an update is left out, as there is nothing to learn from its %d "
                    "responses: %s",
                    step,
                    len(update),
                    " and ".join(why.values()),
                )
            elif self._total & (self._total - 1) == 0:
                logger.warning(
                    "step %d: %d updates were left out so far, for causes that were named before; "
                    "update/without_signal counts them in every step",
                    step,
                    self._total,
                )
