"""Spreads the tokens of prompt groups over ranks and compares with one rank holding them all.

Arguments: folder of the reference batches, output file (weights of every case, by rank 0).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from unit.subspace.subspace_reference import mixed_group

from megatron_resrl.subspace import (
    GroupReport,
    SubspaceSettings,
    TokenShardGroup,
    TokenWeightStream,
    WindowLimits,
    make_plan,
    sampling_key,
    token_weights_with_reports,
)

# Asked for: weights of the same tokens agree within 1e-5 over all layouts.
TOLERANCE = 1e-5
METHODS = ("rows", "gram")


@dataclass(frozen=True)
class Case:
    """A padded batch of groups, and settings."""

    hidden: torch.Tensor
    mask: torch.Tensor
    positive: torch.Tensor
    group: torch.Tensor
    settings: SubspaceSettings

    @property
    def batch(self) -> tuple[torch.Tensor, ...]:
        return self.hidden, self.mask, self.positive, self.group


def golden(folder: Path) -> Iterator[tuple[str, Case]]:
    for file in sorted(folder.glob("*.npz")):
        data = np.load(file)
        tensors = [torch.from_numpy(data[key]) for key in ("hidden", "mask", "positive", "group")]
        tensors[1] = tensors[1].bool()
        yield file.stem, Case(*tensors, SubspaceSettings(rank=int(data["rank"])))


def batch_of(*groups: tuple[torch.Tensor, torch.Tensor], **settings: object) -> Case:
    """Every group's tokens as a right and a wrong response."""
    longest = max(int(side.sum()) for _, positive in groups for side in (positive, ~positive))
    hidden_size = groups[0][0].shape[1]
    hidden = groups[0][0].new_zeros(2 * len(groups), longest, hidden_size)
    mask = torch.zeros(2 * len(groups), longest, dtype=torch.bool)
    for index, (states, positive) in enumerate(groups):
        for row, side in ((2 * index, positive), (2 * index + 1, ~positive)):
            hidden[row, : int(side.sum())], mask[row, : int(side.sum())] = states[side], True
    rows = torch.arange(2 * len(groups))
    return Case(hidden, mask, rows % 2 == 0, rows // 2, SubspaceSettings(**settings))


def cases(folder: Path) -> Iterator[tuple[str, Case]]:
    yield from golden(folder)
    yield "sampled", batch_of(mixed_group(300, 64), mixed_group(90, 64), max_positive_tokens=50)
    yield "narrow", batch_of(mixed_group(40, 576))
    hidden, positive = mixed_group(300, 96, power=0.7)
    yield "bfloat16", batch_of((hidden.bfloat16(), positive))
    # Products with rows, or of float64 scatter matrices: the forms differ.
    yield "large", batch_of(mixed_group(1500, 600), mixed_group(1300, 600, seed=3))
    yield "steep", batch_of(mixed_group(1500, 600, power=1.2))
    hidden, positive = mixed_group(200, 600)
    hidden[positive] = hidden[positive][torch.arange(int(positive.sum())) % 30]
    yield "duplicates", batch_of((hidden, positive))


def owners(count: int, world: int) -> Iterator[torch.Tensor]:
    """Ways to deal a batch's tokens to ranks: owner of every token."""
    token = torch.arange(count)
    yield token % world
    yield token * world // count
    yield token % max(world - 1, 1) + 1  # rank 0 holds none
    yield token % 7 % world


def stream(
    case: Case, ranks: TokenShardGroup, method: str, owner: torch.Tensor, *, window_rows: int
) -> tuple[torch.Tensor, list[GroupReport]]:
    """Weights when every rank adds its own tokens, response by response."""
    plan = make_plan(
        case.mask,
        case.positive,
        case.group.long(),
        case.settings,
        key=lambda number: sampling_key(0, 0, number),
        limits=WindowLimits(window_rows),
    )
    pass_ = TokenWeightStream(plan, case.settings, method=method, ranks=ranks)
    row, position = case.mask.nonzero(as_tuple=True)
    for response in plan.order:
        mine = (row == response) & ((owner == ranks.rank) | (ranks.ranks_per_token > 1))
        states = case.hidden[row[mine], position[mine]]
        pass_.add(states, row[mine], position[mine], [response])
    return pass_.weights, pass_.finish()


def compare(name: str, case: Case, method: str) -> torch.Tensor:
    world = dist.get_world_size()
    alone, expected = token_weights_with_reports(
        *case.batch,
        method=method,
        rank=case.settings.rank,
        max_positive_tokens=case.settings.max_positive_tokens,
    )
    worst = 0.0
    for number, owner in enumerate(owners(int(case.mask.sum()), world)):
        # One group at a time, or several whose problems the ranks share.
        rows = (1, 10**6)[number % 2]
        results = [
            stream(case, TokenShardGroup(dist.group.WORLD), method, owner, window_rows=rows)
            for _ in range(2)
        ]
        weights, reports = results[0]
        assert torch.equal(weights, results[1][0]), f"{name}: a repeated run gave other bits"
        gathered = [None] * world
        dist.all_gather_object(gathered, (weights, str(reports)))
        assert all(torch.equal(other, weights) for other, _ in gathered), f"{name}: ranks differ"
        assert len({text for _, text in gathered}) == 1, f"{name}: reports differ"
        worst = max(worst, (weights - alone).abs().max().item())
        assert worst <= TOLERANCE, f"{name} {method}: weights differ by {worst}"
        for report, want in zip(reports, expected.values(), strict=True):
            for field in ("skipped", "positive_tokens", "negative_tokens", "rank", "degenerate"):
                assert getattr(report, field) == getattr(want, field), (name, field)
            for field in ("mean_weight", "q_low", "q_high", "energy", "effective_rank"):
                pair = getattr(report, field), getattr(want, field)
                np.testing.assert_allclose(*pair, rtol=1e-5, err_msg=f"{name} {field}")
    if dist.get_rank() == 0:
        print(f"{name} {method}: {worst:.1e}")
    return weights


def copies(folder: Path) -> None:
    """Ranks that hold the same tokens divide them; nothing counts twice."""
    world, rank = dist.get_world_size(), dist.get_rank()
    name, case = next(golden(folder))
    nobody = torch.full((int(case.mask.sum()),), -1)
    for method in METHODS:
        alone, _ = token_weights_with_reports(*case.batch, rank=case.settings.rank, method=method)
        ranks = TokenShardGroup(dist.group.WORLD, ranks_per_token=world, token_rank=rank)
        weights, _ = stream(case, ranks, method, nobody, window_rows=1000)
        assert (weights - alone).abs().max() <= TOLERANCE, (name, method)
    # As tokens of their own they would count twice: refused, on all ranks.
    with pytest.raises(ValueError, match="each must be on exactly one rank"):
        stream(case, TokenShardGroup(dist.group.WORLD), "rows", nobody + 1 + rank, window_rows=1000)


def refusals() -> None:
    """A state that is not finite on one rank stops all ranks, with one message."""
    case = batch_of(mixed_group(60, 32))
    owner = torch.arange(60) % dist.get_world_size()
    last = int((owner == dist.get_world_size() - 1).nonzero()[0])
    row, position = (index[last] for index in case.mask.nonzero(as_tuple=True))
    case.hidden[row, position, 3] = float("nan")
    text = f"1 of .* tokens are not finite .* token {position} of response {row}"
    with pytest.raises(FloatingPointError, match=text):
        stream(case, TokenShardGroup(dist.group.WORLD), "gram", owner, window_rows=1000)


def main() -> None:
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    weights = {
        f"{name}_{method}": compare(name, case, method)
        for name, case in cases(folder)
        for method in METHODS
    }
    copies(folder)
    refusals()
    if dist.get_rank() == 0:
        np.savez(sys.argv[2], **{name: found.numpy() for name, found in weights.items()})
        print("all cases agree")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
