"""Spreads the tokens of prompt groups over ranks and compares with one rank holding them all.

Arguments: folder of the reference batches, output file (weights of every case, by rank 0).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from unit.subspace.subspace_reference import mixed_group

from megatron_resrl.subspace import group_token_weights, sampling_key

# Asked for: weights of the same tokens agree within 1e-5 over all layouts.
TOLERANCE = 1e-5


def golden_groups(folder: Path):
    """(name, group tensors, settings) of every group of the reference batches."""
    for file in sorted(folder.glob("*.npz")):
        data = np.load(file)
        mask = torch.from_numpy(data["mask"]).bool()
        hidden, index = torch.from_numpy(data["hidden"])[mask], mask.flatten().nonzero().flatten()
        positive = torch.from_numpy(data["positive"]).unsqueeze(1).expand_as(mask)[mask]
        group = torch.from_numpy(data["group"]).unsqueeze(1).expand_as(mask)[mask]
        for number in group.unique().tolist():
            rows = group == number
            tensors = (hidden[rows], index[rows], positive[rows])
            yield f"{file.stem}/{number}", tensors, {"rank": int(data["rank"])}


def cases(folder: Path):
    yield from golden_groups(folder)
    sample = {"max_positive_tokens": 50, "seed": sampling_key(1, 2, 3)}
    yield "sampled", mixed_group(300, 64), sample
    yield "narrow", mixed_group(40, 576), {}
    yield "bfloat16", mixed_group(300, 96, power=0.7), {}
    # One rank multiplies float32 rows here, several sum float64 Gram matrices.
    yield "large", mixed_group(1500, 600), {}
    yield "steep", mixed_group(1500, 600, power=1.2), {}
    hidden, index, positive = mixed_group(200, 600)
    hidden[positive] = hidden[positive][torch.arange(int(positive.sum())) % 30]
    yield "duplicates", (hidden, index, positive), {}


def shares(index: torch.Tensor, world: int):
    """Ways to deal tokens to ranks: owner of every token."""
    yield torch.arange(len(index)) % world
    yield torch.arange(len(index)) * world // max(len(index), 1)
    yield (torch.arange(len(index)) % max(world - 1, 1)) + 1  # rank 0 holds none
    yield index % 7 % world


def spread(tensors, owner, settings):
    """Weights of all tokens when every rank passes its own ones, and the report."""
    mine = owner == dist.get_rank()
    local = [tensor[mine] for tensor in tensors]
    weights, report = group_token_weights(*local, **settings, process_group=dist.group.WORLD)
    again, same = group_token_weights(*local, **settings, process_group=dist.group.WORLD)
    assert torch.equal(weights, again), "a repeated run gave other bits"
    assert str(same) == str(report)  # as text, because NaN is not equal to itself
    everywhere = torch.zeros(len(owner))
    everywhere[mine] = weights
    dist.all_reduce(everywhere)
    reports = [None] * dist.get_world_size()
    dist.all_gather_object(reports, report)
    assert len({str(other) for other in reports}) == 1, f"reports differ: {reports}"
    return everywhere, report


def compare(name, tensors, settings) -> torch.Tensor:
    if name == "bfloat16":
        tensors = (tensors[0].bfloat16(), *tensors[1:])
    alone, expected = group_token_weights(*tensors, **settings)
    worst = 0.0
    owners = list(shares(tensors[1], dist.get_world_size()))
    for owner in owners if len(tensors[1]) < 1000 else owners[2:]:
        weights, report = spread(tensors, owner, settings)
        worst = max(worst, (weights - alone).abs().max().item())
        assert worst <= TOLERANCE, f"{name}: weights differ by {worst}"
        for field in ("skipped", "positive_tokens", "negative_tokens", "rank", "degenerate"):
            assert getattr(report, field) == getattr(expected, field), (name, field)
        for field in ("mean_weight", "q_low", "q_high", "energy"):
            pair = getattr(report, field), getattr(expected, field)
            np.testing.assert_allclose(*pair, rtol=1e-5, err_msg=f"{name} {field}")
    if dist.get_rank() == 0:
        print(f"{name}: {worst:.1e}")
    return weights


def expect(error: type[Exception], text: str, *tensors: torch.Tensor) -> None:
    with pytest.raises(error, match=text):
        group_token_weights(*tensors, process_group=dist.group.WORLD)


def nothing() -> None:
    """A group without any token is reported, on all ranks."""
    empty = torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    weights, report = group_token_weights(*empty, process_group=dist.group.WORLD)
    assert (len(weights), report.skipped, report.positive_tokens) == (0, "no_positive", 0)


def refusals() -> None:
    """Bad tokens on one rank stop all ranks, with one message."""
    hidden, index, positive = mixed_group(60, 32)
    rank, world = dist.get_rank(), dist.get_world_size()
    expect(ValueError, "token_index values occur twice", hidden, index, positive)  # copies
    mine = torch.arange(60) % world == rank
    hidden[world - 1] = float("nan")  # held by the last rank only
    text = f"1 of 60 tokens .* first token_index {index[world - 1]}"
    expect(FloatingPointError, text, hidden[mine], index[mine], positive[mine])


def main() -> None:
    dist.init_process_group("gloo")
    weights = {name: compare(name, *case) for name, *case in cases(Path(sys.argv[1]))}
    nothing()
    refusals()
    if dist.get_rank() == 0:
        np.savez(sys.argv[2], **{name.replace("/", "_"): w.numpy() for name, w in weights.items()})
        print("all cases agree")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
