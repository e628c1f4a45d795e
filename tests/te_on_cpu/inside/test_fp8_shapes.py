"""Padded lengths and sizes of matrices are those that Transformer Engine's own checks accept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.fp8_utils import get_fp8_align_size
from transformer_engine.pytorch.tensor.float8_blockwise_tensor import Float8BlockQuantizer
from transformer_engine.pytorch.tensor.float8_tensor import Float8CurrentScalingQuantizer
from transformer_engine.pytorch.tensor.mxfp8_tensor import MXFP8Quantizer
from transformer_engine.pytorch.utils import assert_dim_for_all_gather, assert_dim_for_fp8_exec
from transformer_engine_torch import DType

from megatron_resrl.policy.alignment import alignment
from megatron_resrl.policy.batches import (
    TokenBatch,
    TokenSequence,
    make_micro_batches,
    parts_in_order,
)

WHOLE_TENSORS = Float8CurrentScalingQuantizer(DType.kFloat8E4M3, torch.device("cpu"))
QUANTIZERS = {
    "delayed": WHOLE_TENSORS,
    "tensorwise": WHOLE_TENSORS,
    "blockwise": Float8BlockQuantizer(DType.kFloat8E4M3, rowwise=True, columnwise=True),
    "mxfp8": MXFP8Quantizer(DType.kFloat8E4M3),
}
RECIPES = sorted(QUANTIZERS)


def check(tokens: int, hidden: int, recipe: str, sequence_parallel: int) -> None:
    """Raises AssertionError if a rank's activations of this shape are refused."""
    quantizer = QUANTIZERS[recipe]
    activations = torch.empty(tokens, 1, hidden, device="meta")
    assert_dim_for_fp8_exec(activations)
    # The sum of a weight's gradient runs over all tokens, in cuBLAS 16 at a time.
    assert tokens * sequence_parallel % get_fp8_align_size(recipe) == 0
    assert_dim_for_all_gather(activations, sequence_parallel > 1, quantizer)
    if recipe == "mxfp8":  # Without a gather, too: its tensors are made of whole blocks.
        assert quantizer.is_quantizable(activations)


@given(
    recipe=st.sampled_from(RECIPES),
    sequence_parallel=st.sampled_from([1, 2, 4, 8]),
    context_parallel=st.sampled_from([1, 2, 4]),
    packed=st.booleans(),
    hidden_multiples=st.integers(1, 5),
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=3),
)
def test_fp8_shapes_accept_the_lengths_of_micro_batches(
    recipe: str,
    sequence_parallel: int,
    context_parallel: int,
    packed: bool,
    hidden_multiples: int,
    lengths: list[tuple[int, int]],
) -> None:
    multiple = alignment(
        sequence_parallel_size=sequence_parallel,
        context_parallel_size=context_parallel,
        fp8_recipe=recipe,
    )
    sequences = [TokenSequence((3,) * prompt, (4,) * answer) for prompt, answer in lengths]
    batches = make_micro_batches(
        TokenBatch.from_sequences(sequences),
        parts_in_order(range(len(sequences)), 2),
        length_multiple=multiple.length,
        packed=packed,
        context_parallel_size=context_parallel,
    )
    for batch in batches:
        rows, width = batch.tokens.shape
        tokens = rows * width // sequence_parallel
        check(tokens, multiple.hidden * hidden_multiples, recipe, sequence_parallel)


@given(
    recipe=st.sampled_from(RECIPES),
    sequence_parallel=st.sampled_from([1, 2, 4, 8]),
    multiples=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_fp8_shapes_accept_the_sizes_of_matrices(
    recipe: str, sequence_parallel: int, multiples: tuple[int, int]
) -> None:
    multiple = alignment(sequence_parallel_size=sequence_parallel, fp8_recipe=recipe)
    sizes = (multiple.width * multiples[0], multiple.hidden * multiples[1])
    for shape in (sizes, sizes[::-1]):
        weight = torch.empty(shape, device="meta")
        assert_dim_for_fp8_exec(weight)
        assert recipe != "mxfp8" or QUANTIZERS[recipe].is_quantizable(weight)


@pytest.mark.parametrize(
    ("recipe", "sequence_parallel"),
    [*((recipe, 1) for recipe in RECIPES), ("blockwise", 4), ("mxfp8", 4)],
)
def test_fp8_shapes_refuse_half_of_each_multiple(recipe: str, sequence_parallel: int) -> None:
    multiple = alignment(sequence_parallel_size=sequence_parallel, fp8_recipe=recipe)
    tokens = multiple.length // sequence_parallel
    check(tokens, multiple.hidden, recipe, sequence_parallel)
    for shape in ((tokens // 2, multiple.hidden), (tokens, multiple.hidden // 2)):
        with pytest.raises(AssertionError):
            check(*shape, recipe, sequence_parallel)
    with pytest.raises(AssertionError):
        check(tokens, multiple.width // 2, recipe, 1)
