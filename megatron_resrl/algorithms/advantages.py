"""Advantages of whole responses, in float64 on the CPU.

Shapes: B responses, K prompt groups.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_normalised(
    rewards: Tensor, group: Tensor, *, eps: float = 1e-6, scale_by_std: bool = True
) -> Tensor:
    """Rewards relative to the other responses to the same prompt.

    (r - mean) / (std + eps) with the unbiased standard deviation, as in GRPO (arXiv 2402.03300;
    eps as in ResRL, arXiv 2605.00380); r - mean without scaling, as in Dr.GRPO
    (arXiv 2503.20783).

    Args:
        rewards: [B] finite, any real dtype and device.
        group: [B] int64: responses with the same number answer the same prompt.
        eps: Added to the standard deviation, at least 0.
        scale_by_std: False centres only.

    Returns:
        [B] float64 on the CPU. Exactly 0 in groups of one response and where all rewards of a
        group are equal.

    Raises:
        ValueError: Lengths differ, a reward is not finite, `group` is not integer, eps < 0; without
            scaling, an advantage is too large for a loss in float32.
    """
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; it is added to a standard deviation and must be >= 0")
    rewards_B = finite_vector("rewards", rewards)
    member_B, size_K = _members(group, len(rewards_B))
    # By comparison, not by a variance of 0: the mean of equal numbers may differ from them by
    # rounding, which the division by eps would blow up.
    start_K = torch.zeros(len(size_K), dtype=torch.float64)
    lowest_K = (start_K + torch.inf).scatter_reduce(0, member_B, rewards_B, "amin")
    highest_K = (start_K - torch.inf).scatter_reduce(0, member_B, rewards_B, "amax")
    flat_B = (lowest_K == highest_K)[member_B]
    # In units of a power of two near each group's largest reward, whose squares are finite.
    exponent_B = torch.frexp(torch.maximum(lowest_K.abs(), highest_K.abs())).exponent[member_B]
    scaled_B = torch.ldexp(rewards_B, -exponent_B)
    sum_K = start_K.index_add(0, member_B, scaled_B)
    centred_B = scaled_B - (sum_K / size_K)[member_B]
    if scale_by_std:
        squares_K = start_K.index_add(0, member_B, centred_B.square())
        std_K = (squares_K / (size_K - 1).clamp(min=1)).sqrt()
        eps_B = torch.ldexp(torch.full_like(rewards_B, eps), -exponent_B)
        centred_B = centred_B / (std_K[member_B] + eps_B)
    else:
        centred_B = torch.ldexp(centred_B, exponent_B)
        _require_float32(centred_B, rewards_B)
    return centred_B.masked_fill(flat_B, 0.0)


def leave_one_out(rewards: Tensor, group: Tensor) -> Tensor:
    """Each reward less the mean of the other rewards of its group: n / (n - 1) (r - mean).

    Source: RLOO, arXiv 2402.14740.

    Args:
        rewards: [B] finite, any real dtype and device.
        group: [B] int64: responses with the same number answer the same prompt.

    Returns:
        [B] float64 on the CPU. Exactly 0 in groups of one response, which have no others to be
        compared with, and where all rewards of a group are equal.

    Raises:
        ValueError: As for `group_normalised`.
    """
    centred_B = group_normalised(rewards, group, scale_by_std=False)
    member_B, size_K = _members(group, len(centred_B))
    return centred_B * (size_K.double() / (size_K - 1).clamp(min=1))[member_B]


def whitened_over_tokens(advantages: Tensor, tokens: Tensor, *, min_variance: float) -> Tensor:
    """(A - mean) / std, with mean and variance over all tokens of the batch.

    A response counts as often as it has tokens. The variance is that of the population, as in
    OpenRLHF (the library of REINFORCE++'s authors); the paper leaves it open.

    Args:
        advantages: [B] float64, the same for all tokens of a response.
        tokens: [B] integer, generated tokens of each response; not all 0, or all advantages are 0.
        min_variance: Smaller variances count as this, above 0.

    Returns:
        [B] float64. Exactly 0 where all advantages that have tokens are equal.
    """
    counted_B = tokens > 0
    if not counted_B.any() or (advantages[counted_B] == advantages[counted_B][0]).all():
        return torch.zeros_like(advantages)
    share_B = tokens.double() / tokens.sum()
    centred_B = advantages - (share_B * advantages).sum()
    variance = (share_B * centred_B.square()).sum()
    return centred_B / variance.clamp(min=min_variance).sqrt()


def outcome_advantages(scores: Tensor, *, correct: float, incorrect: float) -> Tensor:
    """One advantage for every correct response and one for every other; no baseline.

    Args:
        scores: [B] finite: the verifier's raw scores.
        correct: Advantage where the score is above 0.
        incorrect: Advantage elsewhere.

    Returns:
        [B] float64 on the CPU.

    Raises:
        ValueError: A score is not finite.
    """
    values = torch.tensor([incorrect, correct], dtype=torch.float64)
    return values[is_correct(scores).long()]


def is_correct(scores: Tensor) -> Tensor:
    """Whether the verifier accepted a response: a score above 0, whatever its scale.

    Args:
        scores: [B] finite.

    Returns:
        [B] bool on the CPU.

    Raises:
        ValueError: A score is not finite; taken as wrong it would be punished.
    """
    return finite_vector("scores", scores) > 0


def finite_vector(name: str, values: Tensor) -> Tensor:
    """Checks one number per response and moves them.

    Returns:
        [B] float64 on the CPU.

    Raises:
        ValueError: Not one-dimensional, or a value that is not finite.
    """
    if values.dim() != 1:
        raise ValueError(f"{name} has shape {list(values.shape)}; one number per response is right")
    values_B = values.detach().to("cpu", torch.float64)
    unusable = (~values_B.isfinite()).nonzero().flatten()
    if len(unusable):
        first = int(unusable[0])
        raise ValueError(
            f"{name}[{first}] is {float(values_B[first])} ({len(unusable)} of {len(values_B)} "
            "values like it); every value must be finite"
        )
    return values_B


def _require_float32(advantages: Tensor, rewards: Tensor) -> None:
    beyond = ~(advantages.abs() <= torch.finfo(torch.float32).max)
    if beyond.any():
        raise ValueError(
            f"a reward is {float(rewards[beyond][0])}, and without scaling by the standard "
            "deviation its advantage is too large for a loss in float32: scale the rewards down"
        )


def _members(group: Tensor, responses: int) -> tuple[Tensor, Tensor]:
    """The group's position [B] among the groups present, and the sizes of these [K]."""
    if group.shape != (responses,):
        raise ValueError(
            f"rewards of {responses} responses but groups of {group.numel()} "
            f"(shape {list(group.shape)}); one group number per response is right"
        )
    if group.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"group has dtype {group.dtype}; int64 is right")
    _, member_B, size_K = torch.unique(group.cpu(), return_inverse=True, return_counts=True)
    return member_B, size_K
