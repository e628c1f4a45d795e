"""Weights of a padded batch in one call: the pass for notebooks and tests.

Source: ResRL, arXiv 2605.00380. Shapes: B responses, T positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_resrl.subspace.plan import GroupPlan, SubspaceSettings, make_plan, sampling_key
from megatron_resrl.subspace.report import GroupReport
from megatron_resrl.subspace.stream import TokenWeightStream

ArrayLike = Tensor | np.ndarray | Sequence[Any]
"""What `torch.as_tensor` takes."""


def token_weights(
    hidden: ArrayLike,
    response_mask: ArrayLike,
    positive: ArrayLike,
    group: ArrayLike,
    *,
    rank: int = 64,
    max_positive_tokens: int = 4096,
    quantiles: tuple[float, float] = (0.2, 0.8),
    floor: float = 0.1,
    seed: int = 0,
) -> Tensor:
    """Weights for a padded batch of responses, all in this process.

    Args:
        hidden: [B, T, H] any float dtype; the state at [b, t] is the one that predicts response
            token t. Masked positions are never read. A tensor, or an array or nested list, like the
            others.
        response_mask: [B, T], nonzero on valid response tokens.
        positive: [B], 1 or true on positive responses, 0 or false on the others.
        group: [B] int, prompt group of every response.
        rank: Directions of the positive subspace, k.
        max_positive_tokens: Positives of a group beyond this many are sampled uniformly, M.
        quantiles: Residual quantiles that map to weight `floor` and 1.
        floor: Smallest weight, xi.
        seed: Seed of the sample.

    Returns:
        [B, T] float32 weights, 1 where nothing applies.

    Raises:
        ValueError: A setting out of range, shapes that do not fit, or other values than 0 and 1 in
            `positive`, such as rewards.
        FloatingPointError: Hidden states that are not finite.
    """
    weights, _ = token_weights_with_reports(
        hidden,
        response_mask,
        positive,
        group,
        seed=seed,
        rank=rank,
        max_positive_tokens=max_positive_tokens,
        quantiles=quantiles,
        floor=floor,
    )
    return weights


def token_weights_with_reports(
    hidden: ArrayLike,
    response_mask: ArrayLike,
    positive: ArrayLike,
    group: ArrayLike,
    *,
    seed: int = 0,
    method: str = "rows",
    share: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, dict[int, GroupReport]]:
    """`token_weights` with the report of every group.

    Args:
        hidden: [B, T, H], as for `token_weights`; so are the other tensors and settings.
        response_mask: [B, T].
        positive: [B].
        group: [B] int.
        seed: Seed of the sample; mixed with the id of each group.
        method: `rows` or `gram`.
        share: [B] float: what each token of a response counts in the loss, |A| times the
            aggregation's coefficient, for controls; None: all count alike.
        settings: Fields of `SubspaceSettings`.

    Returns:
        [B, T] float32 weights, and group id -> report in ascending order of ids.

    Raises:
        ValueError: A setting out of range, or shapes that do not fit.
        FloatingPointError: Hidden states that are not finite.
    """
    hidden, response_mask, positive, group = map(
        torch.as_tensor, (hidden, response_mask, positive, group)
    )
    _check_shapes(hidden, response_mask, positive, group)
    _check_values(positive, group)
    subspace = SubspaceSettings(**settings)
    plan = make_plan(
        response_mask.cpu().bool(),
        positive.cpu().bool(),
        group.cpu().long(),
        subspace,
        key=lambda group_id: sampling_key(seed, 0, group_id),
        share_B=None if share is None else share.cpu().double(),
    )
    stream = TokenWeightStream(plan, subspace, method=method, device=hidden.device)
    _feed(stream, plan, hidden, response_mask.cpu().bool())
    reports = stream.finish()
    return stream.weights, dict(zip(plan.group_ids, reports, strict=True))


def _feed(stream: TokenWeightStream, plan: GroupPlan, hidden: Tensor, included: Tensor) -> None:
    """Positives and negatives of each window as two micro-batches."""
    flat = hidden.reshape(-1, hidden.shape[2])
    for window in plan.windows:
        for rows in (window.positives, window.negatives):
            places = torch.tensor(rows, dtype=torch.int64)
            line, position = included[places].nonzero(as_tuple=True)
            row = places[line]
            index = row * hidden.shape[1] + position
            stream.add(_rows_of(flat, index), row, position, rows)


def _rows_of(flat: Tensor, index: Tensor) -> Tensor:
    """`flat[index]`, without a copy where the rows are neighbours."""
    if len(index) and bool((index.diff() == 1).all()):
        return flat[int(index[0]) : int(index[-1]) + 1]
    return flat[index.to(flat.device)]


def _check_shapes(hidden: Tensor, response_mask: Tensor, positive: Tensor, group: Tensor) -> None:
    if hidden.dim() != 3 or not hidden.is_floating_point():
        raise ValueError(
            f"hidden is {hidden.dtype} {tuple(hidden.shape)}, expected float [B, T, H]"
        )
    if response_mask.shape != hidden.shape[:2]:
        raise ValueError(
            f"response_mask {tuple(response_mask.shape)} has to be the first two dimensions of "
            f"hidden [B, T, H], which is {tuple(hidden.shape)}"
        )
    for name, tensor in (("positive", positive), ("group", group)):
        if tensor.shape != hidden.shape[:1]:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected ({len(hidden)},)")


def _check_values(positive: Tensor, group: Tensor) -> None:
    other = positive[(positive != 0) & (positive != 1)]
    if len(other):
        raise ValueError(
            f"positive has the value {other[0].item()}, expected 0 and 1; of rewards give the mask "
            "of the responses that are correct, e.g. rewards > 0"
        )
    if group.is_floating_point() and bool((group != group.round()).any()):
        raise ValueError(f"group has values that are no integers, e.g. {group[0].item()}")
