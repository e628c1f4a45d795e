"""Splits the vocabulary over ranks and compares with one rank that holds it whole."""

from __future__ import annotations

import torch
import torch.distributed as dist
from unit.policy.interference_tokens import PADDED, VOCABULARY, tokens

from megatron_resrl.policy.interference import logit_factors


def compare(dtype: torch.dtype, vocab_size: int, tolerance: float) -> None:
    *batch, weight = tokens(3, dtype)
    options = {"vocab_size": vocab_size, "temperature": 0.8, "chunk_columns": 3}
    batch[1] %= vocab_size
    batch[3] %= vocab_size
    expected = logit_factors(*batch, weight, **options)
    shard = weight.chunk(dist.get_world_size())[dist.get_rank()]
    actual = logit_factors(*batch, shard, group=dist.group.WORLD, **options)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * 1e-3)
    everywhere = [torch.empty_like(actual) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, actual)
    assert all(torch.equal(other, actual) for other in everywhere), "ranks differ"


def main() -> None:
    dist.init_process_group("gloo")
    compare(torch.float64, VOCABULARY, 1e-12)
    compare(torch.float32, VOCABULARY, 1e-4)
    compare(torch.float64, PADDED // 2 - 1, 1e-12)  # the last rank holds padding only
    if dist.get_rank() == 0:
        print("all splits agree")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
