"""Rewards that depend on more than the verifier's score; their settings are checked beforehand."""

from __future__ import annotations


def length_scaled(
    score: float,
    response_tokens: int,
    *,
    full_until: int = 3500,
    floor_at: int = 4096,
    floor: float = 0.7,
) -> float:
    """Makes long correct responses worth less.

    A positive score is unchanged up to `full_until` tokens, falls linearly to `floor` times
    itself at `floor_at` and stays there. Other scores are returned as they are.

    Args:
        score: Score of the verifier.
        response_tokens: Length of the response.
        full_until: Tokens up to which nothing changes, at least 0.
        floor_at: Tokens from which on the factor is `floor`, more than `full_until`.
        floor: The smallest factor, in (0, 1]: a correct response never loses its sign.

    Source: arXiv 2605.00380, maths recipe.
    """
    if score <= 0 or response_tokens <= full_until:
        return score
    if response_tokens >= floor_at:
        return score * floor
    beyond = (response_tokens - full_until) / (floor_at - full_until)
    return score * (1.0 - (1.0 - floor) * beyond)


def overlong_penalty(response_tokens: int, *, limit: int, buffer: int, penalty: float) -> float:
    """What a response that comes close to the length limit loses (soft overlong punishment).

    0 up to `limit - buffer` tokens, then linearly down to -`penalty` at `limit`.

    Args:
        response_tokens: Length of the response.
        limit: Largest length, L_max.
        buffer: Tokens over which the penalty grows, L_cache; at least 1 and less than `limit`.
        penalty: Taken off at the limit, at least 0; 1 in the paper.

    Returns:
        To be added to the reward; at most 0.

    Source: DAPO, arXiv 2503.14476, equation 13.
    """
    beyond = min(response_tokens, limit) - (limit - buffer)
    return -penalty * beyond / buffer if beyond > 0 else 0.0
