"""Padded lengths are those that Transformer Engine's own checks accept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformer_engine.pytorch.tensor.float8_blockwise_tensor import Float8BlockQuantizer
from transformer_engine.pytorch.tensor.float8_tensor import Float8CurrentScalingQuantizer
from transformer_engine.pytorch.tensor.mxfp8_tensor import MXFP8Quantizer
from transformer_engine.pytorch.utils import assert_dim_for_all_gather, assert_dim_for_fp8_exec
from transformer_engine_torch import DType

from megatron_resrl.policy.batches import (
    TokenBatch,
    TokenSequence,
    length_alignment,
    make_micro_batches,
    parts_in_order,
)

WIDTH = 256
QUANTIZERS: dict[str, Callable] = {
    "tensorwise": lambda: Float8CurrentScalingQuantizer(DType.kFloat8E4M3, torch.device("cpu")),
    "blockwise": lambda: Float8BlockQuantizer(DType.kFloat8E4M3, rowwise=True, columnwise=True),
    "mxfp8": lambda: MXFP8Quantizer(DType.kFloat8E4M3),
}


def check(tokens: int, recipe: str, sequence_parallel: int) -> None:
    """Raises AssertionError if a rank's activations of so many tokens are refused."""
    quantizer = QUANTIZERS[recipe]()
    activations = torch.empty(tokens, 1, WIDTH, device="meta")
    assert_dim_for_fp8_exec(activations)
    assert_dim_for_all_gather(activations, sequence_parallel > 1, quantizer)
    if recipe == "mxfp8":  # Without a gather, too: its tensors are made of whole blocks.
        assert quantizer.is_quantizable(activations)


@given(
    recipe=st.sampled_from(sorted(QUANTIZERS)),
    sequence_parallel=st.sampled_from([1, 2, 4, 8]),
    context_parallel=st.sampled_from([1, 2, 4]),
    packed=st.booleans(),
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=3),
)
def test_fp8_shapes_accept_the_lengths_of_micro_batches(
    recipe: str,
    sequence_parallel: int,
    context_parallel: int,
    packed: bool,
    lengths: list[tuple[int, int]],
) -> None:
    alignment = length_alignment(
        sequence_parallel_size=sequence_parallel,
        context_parallel_size=context_parallel,
        fp8_recipe=recipe,
    )
    sequences = [TokenSequence((3,) * prompt, (4,) * answer) for prompt, answer in lengths]
    batches = make_micro_batches(
        TokenBatch.from_sequences(sequences),
        parts_in_order(range(len(sequences)), 2),
        length_multiple=alignment,
        packed=packed,
        context_parallel_size=context_parallel,
    )
    for batch in batches:
        rows, width = batch.tokens.shape
        check(rows * width // sequence_parallel, recipe, sequence_parallel)


@pytest.mark.parametrize(
    ("recipe", "sequence_parallel"), [("blockwise", 2), ("mxfp8", 1), ("mxfp8", 4)]
)
def test_fp8_shapes_refuse_half_of_the_length(recipe: str, sequence_parallel: int) -> None:
    alignment = length_alignment(sequence_parallel_size=sequence_parallel, fp8_recipe=recipe)
    with pytest.raises(AssertionError):
        check(alignment // 2 // sequence_parallel, recipe, sequence_parallel)
