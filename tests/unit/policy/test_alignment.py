"""Lengths and sizes can be shared by the ranks, and are no larger than that asks.

`tests/te_on_cpu/inside/test_fp8_shapes.py` holds them against Transformer Engine's own rules.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.policy.alignment import Alignment, alignment
from megatron_resrl.policy.segments import zigzag_positions

RECIPES = (None, "delayed", "tensorwise", "blockwise", "mxfp8")


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.sampled_from(RECIPES))
def test_alignment_makes_lengths_that_ranks_share(
    count: int, sequence_parallel: int, context_parallel: int, fp8_recipe: str | None
) -> None:
    made = alignment(
        sequence_parallel_size=sequence_parallel,
        context_parallel_size=context_parallel,
        fp8_recipe=fp8_recipe,
    )
    length = count * made.length
    assert length % (context_parallel * sequence_parallel * (16 if fp8_recipe else 1)) == 0
    assert context_parallel == 1 or length % (2 * context_parallel) == 0
    held = [zigzag_positions(length, rank, context_parallel) for rank in range(context_parallel)]
    assert torch.cat(held).sort().values.tolist() == list(range(length))
    assert {len(own) for own in held} == {length // context_parallel}
    assert made.hidden % made.width == 0
    assert (made.width > 1) == (fp8_recipe is not None)


@pytest.mark.parametrize(
    ("layout", "made"),
    [
        ({}, Alignment(1, 1, 1)),
        ({"sequence_parallel_size": 4}, Alignment(4, 1, 1)),
        ({"sequence_parallel_size": 2, "context_parallel_size": 2}, Alignment(4, 1, 1)),
        ({"sequence_parallel_size": 2, "fp8_recipe": "tensorwise"}, Alignment(32, 16, 16)),
        ({"context_parallel_size": 4, "fp8_recipe": "delayed"}, Alignment(64, 16, 16)),
        ({"fp8_recipe": "blockwise"}, Alignment(16, 16, 16)),
        ({"sequence_parallel_size": 2, "fp8_recipe": "blockwise"}, Alignment(256, 128, 16)),
        ({"sequence_parallel_size": 2, "fp8_recipe": "mxfp8"}, Alignment(64, 32, 32)),
    ],
)
def test_alignment_is_no_larger_than_needed(layout: dict, made: Alignment) -> None:
    assert alignment(**layout) == made
