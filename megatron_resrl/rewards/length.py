"""The length of a response as a reward of its own."""

from __future__ import annotations

from typing import Annotated, Any

from megatron_resrl.config.ranges import above, at_least


def length_reward(
    response: str,
    ground_truth: Any,
    *,
    response_tokens: int,
    prompt: str = "",
    data_source: str = "",
    extra: Any = None,
    shortest: Annotated[int, at_least(0)] = 0,
    longest: Annotated[int | None, at_least(0)] = None,
    tolerance: Annotated[float, above(0)] = 1.0,
) -> float:
    """1 if a response is neither too short nor too long, then linearly down to 0.

    For a length outside of [shortest, longest] by m tokens it is max(0, 1 - m / tolerance).

    Args:
        response: Not used.
        ground_truth: Not used; any will do.
        response_tokens: Tokens that the policy generated.
        prompt: Not used.
        data_source: Not used.
        extra: Not used.
        shortest: Tokens of the shortest response that is worth 1.
        longest: Tokens of the longest response that is worth 1; None: any.
        tolerance: Tokens beyond those at which the reward is 0.
    """
    too_many = 0 if longest is None else response_tokens - longest
    return max(0.0, 1.0 - max(0, shortest - response_tokens, too_many) / tolerance)


def check_ground_truth(value: Any) -> None:
    """Accepts any ground truth: none is used."""


def check_options(*, shortest: int = 0, longest: int | None = None, tolerance: float = 1.0) -> None:
    """Refuses options that ask for nothing, or for the impossible.

    Raises:
        ValueError: With what is wrong and what would be right.
    """
    if longest is None and not shortest:
        raise ValueError("every length is worth 1: give shortest or longest")
    if longest is not None and longest < shortest:
        raise ValueError(f"longest = {longest} is below shortest = {shortest}: give a larger one")
