"""Padding does not change a bit of what FP8 computes for the tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from tiny_scoring import SEQUENCES, in_order
from transformer_engine.pytorch.quantization import FP8GlobalStateManager

from megatron_resrl.policy.alignment import alignment
from megatron_resrl.policy.batches import (
    MicroBatch,
    TokenBatch,
    make_micro_batches,
    parts_in_order,
)
from megatron_resrl.policy.policy import Policy

RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")
LOUD = 20.0
"""The one number in the embedding of the token that stands for padding: normed, it is larger than
any number of the others."""
SUMS = 1e-3
"""Of gradient norms: more rows are added in another order, and other tokens share a block."""


class Seen(NamedTuple):
    """Of one pass over all sequences."""

    log_probs: torch.Tensor
    entropy: torch.Tensor
    states: torch.Tensor
    loss_log_probs: torch.Tensor
    grad_norm: float


@pytest.fixture(params=RECIPES)
def fresh(build: Callable[..., Policy], request: pytest.FixtureRequest) -> Callable[[], Policy]:
    """fresh() -> the same policy each time, without scales from earlier passes."""

    def built() -> Policy:
        FP8GlobalStateManager.reset()
        policy = build(
            "--precision.fp8=hybrid", f"--precision.fp8_recipe={request.param}", "--optimizer.lr=0"
        )
        with torch.no_grad():
            row = policy.modules[0].embedding.word_embeddings.weight[0]
            row.zero_()[3] = LOUD
        policy.optimizer.reload_model_params()
        return policy

    return built


def twice(policy: Policy, *, packed: bool, lengths: int, mark: bool = True) -> Seen:
    """The second pass, whose delayed scales are those of the first.

    Args:
        policy: Without passes so far.
        packed: Or padded.
        lengths: Sequences are padded to multiples of the smallest length times this.
        mark: Say which positions are padding.
    """
    multiple = alignment(fp8_recipe=policy.config.fp8_recipe).length * lengths
    batches = make_micro_batches(
        TokenBatch.from_sequences(SEQUENCES),
        parts_in_order(range(len(SEQUENCES)), 2),
        length_multiple=multiple,
        packed=packed,
    )
    if not mark:
        batches = [dataclasses.replace(batch, padding=None) for batch in batches]
    run(policy, batches)
    return run(policy, batches)


def run(policy: Policy, batches: list[MicroBatch]) -> Seen:
    states: list[torch.Tensor] = []
    scores = policy.score(
        batches, on_hidden_states=lambda tapped, _: states.append(tapped.hidden), layer=-2
    )
    seen: list[torch.Tensor] = []

    def loss(log_probs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> tuple:
        seen.append(log_probs.detach().clone())
        return -log_probs.sum(), None

    result = policy.update(batches, loss)
    return Seen(
        in_order([each.log_probs for each in scores], batches),
        in_order([each.entropy for each in scores], batches),
        in_order(states, batches),
        in_order(seen, batches),
        result.grad_norm,
    )


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_fp8_padding_changes_no_bit_of_the_tokens(
    fresh: Callable[[], Policy], packed: bool
) -> None:
    few, many = (twice(fresh(), packed=packed, lengths=lengths) for lengths in (1, 4))
    for name in ("log_probs", "entropy", "states", "loss_log_probs"):
        assert torch.equal(getattr(few, name), getattr(many, name)), name
    assert many.grad_norm == pytest.approx(few.grad_norm, rel=SUMS)


def test_fp8_scales_take_in_padding_without_a_mark(fresh: Callable[[], Policy]) -> None:
    marked, plain = (twice(fresh(), packed=False, lengths=4, mark=mark) for mark in (True, False))
    same = torch.equal(marked.log_probs, plain.log_probs) and marked.grad_norm == plain.grad_norm
    # In the forward pass blocks lie within one token. Those of gradients hold many, and another
    # power of two as their scale rounds alike.
    assert same == (fresh().config.fp8_recipe in ("blockwise", "mxfp8"))


def test_fp8_policy_marks_padding(fresh: Callable[[], Policy]) -> None:
    policy = fresh()
    batches = policy.micro_batches(TokenBatch.from_sequences(SEQUENCES), 2)
    rows = [[SEQUENCES[row] for row in batch.sequences] for batch in batches]
    for batch, sequences in zip(batches, rows, strict=True):
        assert (~batch.padding).sum(1).tolist() == [len(each) - 1 for each in sequences]
