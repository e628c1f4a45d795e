"""Plans what each token of a scoring pass is used for, on the host and before the pass.

Shapes: B responses of the pool, T longest response, G groups.

A pool is the set of responses that a set of ranks shares: the responses of one data-parallel
replica, or of all replicas where groups are split. Every rank makes the same plan from lengths and
verdicts alone, without communication, and no choice depends on the layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_resrl.config.ranges import field_ranges, require_in_range
from megatron_resrl.config.schema import ResrlConfig

_RANGES = field_ranges(ResrlConfig)
MIN_POSITIVE_TOKENS = 4
# Smallest number of rows that a rank collects before bases are made, so that small groups are
# solved together; a few megabytes.
MIN_WINDOW_ROWS = 1024


@dataclass(frozen=True)
class SubspaceSettings:
    """Settings of the method (arXiv 2605.00380)."""

    rank: int = 64
    """Directions of the positive subspace, k."""
    max_positive_tokens: int = 4096
    """Positives of a group beyond this many are sampled uniformly, M."""
    quantiles: tuple[float, float] = (0.2, 0.8)
    """Residual quantiles that map to weight `floor` and 1."""
    floor: float = 0.1
    """Smallest weight, xi."""
    weights: str = "residual"
    """`residual`: the method's; `constant`, `random`: controls with the same part in the loss;
    `inverted`: 1 + floor - weight."""

    def __post_init__(self) -> None:
        # The same ranges as those of the section `resrl`, for callers without a recipe.
        for name in ("rank", "max_positive_tokens", "quantiles", "floor"):
            require_in_range(name, getattr(self, name), _RANGES[name])
        if self.weights not in ("residual", "constant", "random", "inverted"):
            raise ValueError(
                f"weights is {self.weights!r}, expected residual, constant, random or inverted"
            )


def sampling_key(seed: int, step: int, group: int) -> int:
    """Mixes run seed, step and prompt group into the key of a group's random choices.

    Returns:
        Integer in [0, 2^63), the same on every machine and Python version.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Window:
    """Groups whose positives are collected together before any of their negatives is scored."""

    groups: tuple[int, ...]
    """Indices into the plan's groups."""
    positives: tuple[int, ...]
    """Responses that arrive first: positives, and all responses of skipped groups."""
    negatives: tuple[int, ...]
    """Responses that arrive after all positives."""


@dataclass(frozen=True)
class GroupPlan:
    """What each token is used for, and the order in which responses must be scored. On the CPU."""

    group_ids: tuple[int, ...]
    """[G] id that the caller gave each group, ascending."""
    group_B: Tensor
    """[B] int64 index of each response's group."""
    sampled_BT: Tensor
    """[B, T] bool: positive tokens that enter the statistics."""
    weighted_BT: Tensor
    """[B, T] bool: negative tokens that get a weight from their residual."""
    index_in_group_BT: Tensor
    """[B, T] int64: index of a token among the sampled or weighted tokens of its group."""
    sampled_G: Tensor
    """[G] int64 positive tokens that enter the statistics; 0 where skipped."""
    weighted_G: Tensor
    """[G] int64 negative tokens that get a weight; 0 where skipped."""
    positive_tokens: tuple[int, ...]
    """[G] included tokens of positive responses, before sampling."""
    negative_tokens: tuple[int, ...]
    """[G] included tokens of negative responses."""
    skipped: tuple[str | None, ...]
    """[G] why a group keeps weight 1; None: it gets weights."""
    windows: tuple[Window, ...]
    """In the order of the pass."""
    keys: tuple[int, ...]
    """[G] key of each group's random choices."""
    share_B: Tensor
    """[B] float64: share of each token of a response in the loss, up to a factor of its group;
    controls have the method's sum of share x weight."""

    @property
    def order(self) -> list[int]:
        """The pool's responses in the order in which they have to arrive."""
        return [row for window in self.windows for row in window.positives + window.negatives]


@dataclass(frozen=True)
class WindowLimits:
    """Which groups may share a window."""

    rows: int | None = None
    """Rows of positives (padded to the largest group) that a window may collect for each rank; a
    larger group gets a window of its own. None: the rows of the largest group, at least
    MIN_WINDOW_ROWS."""
    groups: int | None = None
    """Largest number of groups in a window for each rank; None: any."""
    first: Collection[int] = ()
    """Ids of groups whose responses arrive before all others', in windows of their own."""


def make_plan(
    included_BT: Tensor,
    positive_B: Tensor,
    group_B: Tensor,
    settings: SubspaceSettings,
    *,
    key: Callable[[int], int],
    ranks: int = 1,
    limits: WindowLimits | None = None,
    share_B: Tensor | None = None,
) -> GroupPlan:
    """Plans a pass.

    Args:
        included_BT: [B, T] bool: tokens that take part (response tokens that are not masked).
        positive_B: [B] bool: correct responses, whose tokens span the subspace; tokens of the other
            responses get weights.
        group_B: [B] int64 group id of each response, e.g. the number of its prompt.
        settings: Sample size and rank.
        key: Group id -> key of its random choices.
        ranks: Number of ranks that share the pool.
        limits: Of windows; None: the defaults.
        share_B: [B] see `GroupPlan`; None: all tokens have the same share.

    Returns:
        The plan, the same for the same arguments.
    """
    group_ids, group_B = group_B.unique(return_inverse=True)
    positive_BT = included_BT & positive_B.unsqueeze(1)
    negative_BT = included_BT & ~positive_B.unsqueeze(1)
    positives_G = _per_group(positive_BT, group_B, len(group_ids))
    negatives_G = _per_group(negative_BT, group_B, len(group_ids))
    skipped = [
        _skip_reason(*counts)
        for counts in zip(positives_G.tolist(), negatives_G.tolist(), strict=True)
    ]
    used_B = torch.tensor([reason is None for reason in skipped])[group_B].unsqueeze(1)
    keys = [key(group_id) for group_id in group_ids.tolist()]
    sampled_BT = positive_BT & used_B
    for index, number_of_tokens in enumerate(positives_G.tolist()):
        if skipped[index] is None and number_of_tokens > settings.max_positive_tokens:
            _keep_sample(sampled_BT, group_B == index, settings.max_positive_tokens, keys[index])
    weighted_BT = negative_BT & used_B
    sampled_G = _per_group(sampled_BT, group_B, len(group_ids))
    limits = limits or WindowLimits()
    window_rows = limits.rows or max(MIN_WINDOW_ROWS, int(sampled_G.max()))
    return GroupPlan(
        group_ids=tuple(group_ids.tolist()),
        group_B=group_B,
        sampled_BT=sampled_BT,
        weighted_BT=weighted_BT,
        index_in_group_BT=torch.where(
            weighted_BT, _columns(weighted_BT, group_B), _columns(sampled_BT, group_B)
        ),
        sampled_G=sampled_G,
        weighted_G=_per_group(weighted_BT, group_B, len(group_ids)),
        positive_tokens=tuple(positives_G.tolist()),
        negative_tokens=tuple(negatives_G.tolist()),
        skipped=tuple(skipped),
        windows=_windows(
            sampled_G.tolist(),
            group_B,
            positive_B,
            settings.rank,
            window_rows * ranks,
            None if limits.groups is None else limits.groups * ranks,
            [group_id not in limits.first for group_id in group_ids.tolist()],
        ),
        keys=tuple(keys),
        share_B=torch.ones(len(group_B), dtype=torch.float64) if share_B is None else share_B,
    )


def _skip_reason(positive_tokens: int, negative_tokens: int) -> str | None:
    if positive_tokens == 0:
        return "no_positive"
    if negative_tokens == 0:
        return "no_negative"
    return "few_positive_tokens" if positive_tokens < MIN_POSITIVE_TOKENS else None


def _per_group(mask_BT: Tensor, group_B: Tensor, groups: int) -> Tensor:
    return torch.zeros(groups, dtype=torch.int64).index_add_(0, group_B, mask_BT.sum(1))


def _keep_sample(sampled_BT: Tensor, inside_B: Tensor, size: int, key: int) -> None:
    """Keeps a uniform sample of a group's tokens, by response and position alone."""
    rows, positions = (sampled_BT & inside_B.unsqueeze(1)).nonzero(as_tuple=True)
    generator = torch.Generator().manual_seed(key)
    dropped = torch.randperm(len(rows), generator=generator)[size:]
    sampled_BT[rows[dropped], positions[dropped]] = False


def _columns(mask_BT: Tensor, group_B: Tensor) -> Tensor:
    """[B, T] index of each marked token in its group, responses in order."""
    order = group_B.argsort(stable=True)
    running = mask_BT[order].flatten().cumsum(0).view(mask_BT.shape) - 1
    sizes = mask_BT.sum(1)[order]
    before = sizes.cumsum(0) - sizes
    lines = group_B[order]
    first_of_group = torch.searchsorted(lines, lines)
    columns = torch.empty_like(running)
    columns[order] = running - before[first_of_group].unsqueeze(1)
    return columns


def _windows(
    sampled: Sequence[int],
    group_B: Tensor,
    positive_B: Tensor,
    rank: int,
    window_rows: int,
    window_groups: int | None,
    later: Sequence[bool],
) -> tuple[Window, ...]:
    """Windows of groups, largest groups first, so that the groups of a window are of like size.

    Groups that come later share no window with those that come first.
    """
    order = sorted(range(len(sampled)), key=lambda group: (later[group], -sampled[group], group))
    members: list[list[int]] = []
    for group in order:
        # A basis of `rank` directions stays until the end of the window; it counts as `rank` rows.
        widest = max(sampled[members[-1][0]], rank) if members else 0
        fits = bool(members) and (len(members[-1]) + 1) * widest <= window_rows
        border = bool(members) and later[members[-1][0]] != later[group]
        if not fits or border or len(members[-1]) == window_groups:
            members.append([])
        members[-1].append(group)
    rows: list[tuple[list[int], list[int]]] = [([], []) for _ in sampled]
    for row, (group, positive) in enumerate(
        zip(group_B.tolist(), positive_B.tolist(), strict=True)
    ):
        rows[group][0 if positive or not sampled[group] else 1].append(row)
    return tuple(
        Window(
            tuple(groups),
            tuple(row for group in groups for row in rows[group][0]),
            tuple(row for group in groups for row in rows[group][1]),
        )
        for groups in members
    )
