"""Weights of negative tokens from their distance to the positive tokens of their prompt group.

Source: ResRL, arXiv 2605.00380. Shapes: N local tokens of one group, H hidden size, B responses,
T positions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_resrl.subspace.basis import Basis, basis_from_rows, basis_from_statistics
from megatron_resrl.subspace.gather import all_gather, all_gather_ragged, group_size
from megatron_resrl.subspace.report import GroupReport
from megatron_resrl.subspace.residual import residuals
from megatron_resrl.subspace.statistics import Statistics, gather_statistics, normalised_rows

MIN_POSITIVE_TOKENS = 4
MIN_QUANTILE_SPREAD = 1e-5


def sampling_key(seed: int, step: int, group: int) -> int:
    """Mixes run seed, step and prompt group into the key of a group's token sample.

    Returns:
        Integer in [0, 2^63), the same on every machine and Python version.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@torch.no_grad()
def group_token_weights(
    hidden_NH: Tensor,
    token_index_N: Tensor,
    positive_N: Tensor,
    *,
    rank: int = 64,
    max_positive_tokens: int = 4096,
    quantiles: tuple[float, float] = (0.2, 0.8),
    floor: float = 0.1,
    seed: int = 0,
    process_group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, GroupReport]:
    """Weights for the tokens of one prompt group, whose tokens may be spread over ranks.

    With `process_group` all its ranks have to call this together, also those without tokens.

    Args:
        hidden_NH: [N, H] any float dtype: hidden states that predict this rank's valid response
            tokens of positive and negative responses. N may be 0.
        token_index_N: [N] int64, unique within the group and independent of the layout.
        positive_N: [N] bool, whether the token belongs to a positive response.
        rank: Directions of the positive subspace, k.
        max_positive_tokens: Positives beyond this many are sampled uniformly, M.
        quantiles: Residual quantiles that map to weight `floor` and 1.
        floor: Smallest weight, xi.
        seed: Key of the sample, mixed from (seed, step, group): see `sampling_key`.
        process_group: Ranks that hold different tokens of this group; None when all are here.
            Ranks with copies of the same tokens must not be in it.

    Returns:
        Weights [N] float32, 1 on positives and in skipped groups; and the report, the same on
        all ranks.

    Raises:
        ValueError: A setting out of range, shapes that do not fit, tokens held by two ranks.
        FloatingPointError: Hidden states that are not finite; on all ranks together.
    """
    _check_settings(rank, max_positive_tokens, quantiles, floor)
    _check_shapes(hidden_NH, token_index_N, positive_N)
    survey = _survey(hidden_NH, token_index_N, positive_N, process_group)
    weights_N = torch.ones(len(hidden_NH), dtype=torch.float32, device=hidden_NH.device)
    skipped = _skip_reason(survey)
    if skipped is not None:
        return weights_N, GroupReport(skipped, survey.positive_tokens, survey.negative_tokens)

    rows_P = survey.positive_rows
    if survey.positive_tokens > max_positive_tokens:
        sample = _sampled(survey.positive_index, max_positive_tokens, seed)
        rows_P = rows_P[torch.isin(token_index_N[rows_P], sample)]
    # Mixed precision of the surrounding model must not reach these products.
    with torch.autocast(hidden_NH.device.type, enabled=False):
        basis = _positive_basis(hidden_NH, rows_P, rank, process_group)
        residual_M = residuals(hidden_NH, survey.negative_rows, basis)
    everywhere = all_gather_ragged(residual_M, survey.negative_counts, process_group)
    q_low, q_high = torch.quantile(everywhere, everywhere.new_tensor(quantiles)).unbind()
    weights_N[survey.negative_rows] = _weights(residual_M, q_low, q_high, floor).float()
    mean_weight = _weights(everywhere, q_low, q_high, floor).mean()
    numbers = torch.stack((mean_weight, q_low, q_high, basis.energy)).tolist()
    degenerate = numbers[2] - numbers[1] < MIN_QUANTILE_SPREAD
    return weights_N, GroupReport(
        None, survey.positive_tokens, survey.negative_tokens, basis.rank, *numbers, degenerate
    )


def token_weights(
    hidden: Tensor,
    response_mask: Tensor,
    positive: Tensor,
    group: Tensor,
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
            token t. Masked positions are never read.
        response_mask: [B, T], nonzero on valid response tokens.
        positive: [B], nonzero on positive responses.
        group: [B] int, prompt group of every response.
        rank: Directions of the positive subspace, k.
        max_positive_tokens: Positives of a group beyond this many are sampled uniformly, M.
        quantiles: Residual quantiles that map to weight `floor` and 1.
        floor: Smallest weight, xi.
        seed: Seed of the sample.

    Returns:
        [B, T] float32 weights, 1 where nothing applies.

    Raises:
        ValueError: A setting out of range, or shapes that do not fit.
        FloatingPointError: Hidden states that are not finite.
    """
    return token_weights_with_reports(
        hidden,
        response_mask,
        positive,
        group,
        rank=rank,
        max_positive_tokens=max_positive_tokens,
        quantiles=quantiles,
        floor=floor,
        seed=seed,
    )[0]


def token_weights_with_reports(
    hidden: Tensor,
    response_mask: Tensor,
    positive: Tensor,
    group: Tensor,
    *,
    seed: int = 0,
    **settings: object,
) -> tuple[Tensor, dict[int, GroupReport]]:
    """`token_weights` with the report of every group.

    Args:
        hidden: [B, T, H], as for `token_weights`; so are the other tensors and settings.
        response_mask: [B, T].
        positive: [B].
        group: [B] int.
        seed: Seed of the sample; mixed with each group's number.
        settings: Other keyword settings of `token_weights`.

    Returns:
        [B, T] float32 weights, and group number -> report in ascending order of groups.

    Raises:
        ValueError: A setting out of range, or shapes that do not fit.
        FloatingPointError: Hidden states that are not finite.
    """
    if hidden.dim() != 3 or response_mask.shape != hidden.shape[:2]:
        raise ValueError(
            f"response_mask {tuple(response_mask.shape)} has to be the first two dimensions of "
            f"hidden [B, T, H], which is {tuple(hidden.shape)}"
        )
    for name, tensor in (("positive", positive), ("group", group)):
        if tensor.shape != hidden.shape[:1]:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected ({len(hidden)},)")
    mask = response_mask.bool()
    flat = hidden.reshape(-1, hidden.shape[-1])
    weights = torch.ones(mask.shape, dtype=torch.float32, device=hidden.device)
    reports = {}
    for number in group.unique().tolist():
        rows, columns = (mask & (group == number).unsqueeze(1)).nonzero(as_tuple=True)
        index = rows * mask.shape[1] + columns
        weights[rows, columns], reports[number] = group_token_weights(
            flat[index],
            index,
            positive.bool()[rows],
            seed=sampling_key(seed, 0, number),
            **settings,
        )
    return weights, reports


@dataclass(frozen=True)
class _Survey:
    """Which tokens there are, here and on all ranks together."""

    positive_rows: Tensor
    """Local rows of positive tokens, by token index."""
    negative_rows: Tensor
    """Local rows of negative tokens, by token index."""
    negative_counts: list[int]
    """Negative tokens of every rank."""
    positive_index: Tensor
    """Token indices of the positives of all ranks."""

    @property
    def positive_tokens(self) -> int:
        return len(self.positive_index)

    @property
    def negative_tokens(self) -> int:
        return sum(self.negative_counts)


def _survey(
    hidden_NH: Tensor,
    token_index_N: Tensor,
    positive_N: Tensor,
    process_group: dist.ProcessGroup | None,
) -> _Survey:
    """Counts tokens and refuses bad ones, with the same outcome on all ranks."""
    order = token_index_N.argsort()
    ordered = positive_N[order]
    positive_rows, negative_rows = order[ordered], order[~ordered]
    bad_N = token_index_N[~_finite(hidden_NH)]
    first_bad = int(bad_N.min()) if len(bad_N) else torch.iinfo(torch.int64).max
    local = [len(positive_rows), len(negative_rows), hidden_NH.shape[1], len(bad_N), first_bad]
    ranks = all_gather(torch.tensor(local, device=hidden_NH.device), process_group).tolist()
    positives, negatives, sizes, bad, first = (list(column) for column in zip(*ranks, strict=True))
    if len(set(sizes)) > 1:
        raise ValueError(f"hidden size differs between ranks: {sizes}")
    if sum(bad):
        raise FloatingPointError(
            f"hidden states of {sum(bad)} of {sum(positives) + sum(negatives)} tokens are not "
            f"finite (or too large to square in float32); first token_index {min(first)}"
        )
    index = token_index_N[torch.cat((positive_rows, negative_rows))]
    counts = [p + n for p, n in zip(positives, negatives, strict=True)]
    by_rank = all_gather_ragged(index, counts, process_group)
    _check_unique(by_rank)
    parts = by_rank.split([c for pair in zip(positives, negatives, strict=True) for c in pair])
    return _Survey(positive_rows, negative_rows, negatives, torch.cat(parts[::2]))


def _finite(hidden_NH: Tensor) -> Tensor:
    wide = torch.float64 if hidden_NH.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(hidden_NH, dim=1, dtype=wide).isfinite()


def _check_unique(token_index: Tensor) -> None:
    ordered = token_index.sort().values
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise ValueError(
            f"{len(twice)} token_index values occur twice, first {int(twice[0])}: they have to be "
            "unique within the group, and process_group may only hold ranks with different tokens"
        )


def _skip_reason(survey: _Survey) -> str | None:
    if survey.positive_tokens == 0:
        return "no_positive"
    if survey.negative_tokens == 0:
        return "no_negative"
    return "few_positive_tokens" if survey.positive_tokens < MIN_POSITIVE_TOKENS else None


def _sampled(positive_index: Tensor, size: int, seed: int) -> Tensor:
    """Token indices of a uniform sample that depends on the set of indices and the seed only."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(positive_index), generator=generator)[:size]
    return positive_index.sort().values[chosen.to(positive_index.device)]


def _positive_basis(
    hidden_NH: Tensor, rows_P: Tensor, rank: int, process_group: dist.ProcessGroup | None
) -> Basis:
    if group_size(process_group) == 1:
        return basis_from_rows(normalised_rows(hidden_NH, rows_P), rank)
    statistics = Statistics.empty(hidden_NH.shape[1], hidden_NH.device)
    statistics.add(normalised_rows(hidden_NH, rows_P))
    return basis_from_statistics(gather_statistics(statistics, process_group), rank)


def _weights(residual_M: Tensor, q_low: Tensor, q_high: Tensor, floor: float) -> Tensor:
    spread = q_high - q_low
    share = ((residual_M - q_low) / spread.clamp_min(MIN_QUANTILE_SPREAD)).clamp(0, 1)
    share = torch.where(spread < MIN_QUANTILE_SPREAD, 0.5, share)
    return floor + (1 - floor) * share


def _check_settings(
    rank: int, max_positive_tokens: int, quantiles: tuple[float, float], floor: float
) -> None:
    low, high = quantiles
    if rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1")
    if max_positive_tokens < MIN_POSITIVE_TOKENS:
        raise ValueError(
            f"max_positive_tokens is {max_positive_tokens}, expected at least {MIN_POSITIVE_TOKENS}"
        )
    if not 0 <= low < high <= 1:
        raise ValueError(f"quantiles are ({low}, {high}), expected 0 <= low < high <= 1")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor is {floor}, expected a number from 0 to 1")


def _check_shapes(hidden_NH: Tensor, token_index_N: Tensor, positive_N: Tensor) -> None:
    if hidden_NH.dim() != 2 or not hidden_NH.is_floating_point():
        raise ValueError(
            f"hidden is {hidden_NH.dtype} {tuple(hidden_NH.shape)}, expected float [tokens, hidden]"
        )
    for name, tensor, dtype in (
        ("token_index", token_index_N, torch.int64),
        ("positive", positive_N, torch.bool),
    ):
        if tensor.shape != hidden_NH.shape[:1] or tensor.dtype != dtype:
            raise ValueError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}, "
                f"expected {dtype} ({len(hidden_NH)},)"
            )
