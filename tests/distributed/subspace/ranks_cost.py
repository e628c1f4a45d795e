"""Streams groups over all ranks and compares the bytes they sent with the prediction."""

from __future__ import annotations

import torch
import torch.distributed as dist

from megatron_resrl.subspace import SubspaceSettings, TokenRanks, TokenWeightStream, make_plan
from megatron_resrl.subspace.cost import METHODS, PassShape, cost_of
from megatron_resrl.subspace.rates import H100_NODE

TOLERANCE = 0.05
RANK = 8


def batch(groups: int, tokens: int, hidden_size: int, dtype: torch.dtype):
    """[B, T, H] states, verdicts and groups: one right and one wrong response per group."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2 * groups, tokens, hidden_size, generator=generator).to(dtype)
    return hidden, torch.arange(2 * groups) % 2 == 0, torch.arange(2 * groups) // 2


def sent_bytes(method: str, shape: PassShape, dtype: torch.dtype) -> int:
    """By the rank that sends most, in a real pass over tokens dealt to the ranks in turn."""
    tokens = shape.positive_tokens
    hidden, positive, group = batch(shape.groups, tokens, shape.hidden_size, dtype)
    settings = SubspaceSettings(rank=shape.rank, max_positive_tokens=tokens)
    ranks = TokenRanks(dist.group.WORLD)
    plan = make_plan(
        torch.ones(hidden.shape[:2], dtype=torch.bool),
        positive,
        group,
        settings,
        key=lambda number: number,
        window_rows=shape.window_rows,
        window_groups=ranks.size if method == "gram" else None,
    )
    stream = TokenWeightStream(plan, settings, method=method, ranks=ranks)
    for window in plan.windows:
        for rows in (window.positives, window.negatives):
            row = torch.tensor(rows).repeat_interleave(tokens)
            position = torch.arange(tokens).repeat(len(rows))
            mine = position % ranks.size == ranks.rank
            row, position = row[mine], position[mine]
            stream.add(hidden[row, position], row, position, rows)
    stream.finish()
    most = torch.tensor(ranks.sent_bytes)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def compare(groups: int, tokens: int, hidden_size: int, window: int, dtype: torch.dtype) -> None:
    shape = PassShape(
        groups=groups,
        positive_tokens=tokens,
        negative_tokens=tokens,
        hidden_size=hidden_size,
        rank=RANK,
        itemsize=dtype.itemsize,
        ranks=dist.get_world_size(),
        window_rows=window * tokens,
    )
    for method in METHODS:
        predicted = cost_of(method, shape, H100_NODE).bytes_sent
        sent = sent_bytes(method, shape, dtype)
        assert abs(sent - predicted) <= TOLERANCE * predicted, (method, shape, sent, predicted)
        if dist.get_rank() == 0:
            print(f"{method} {groups} x {tokens} x {hidden_size}: {sent} sent, {predicted}")


def main() -> None:
    dist.init_process_group("gloo")
    compare(4, 120, 64, 2, torch.float32)
    compare(4, 120, 320, 4, torch.bfloat16)
    compare(5, 64, 300, 2, torch.bfloat16)  # the last window holds one group
    compare(3, 64, 96, 1, torch.float32)  # and so do all
    if dist.get_rank() == 0:
        print("bytes agree")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
