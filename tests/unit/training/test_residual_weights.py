"""Streaming groups through micro-batches gives the weights of the whole batch at once."""

from __future__ import annotations

import pytest
import torch

from megatron_resrl.config.schema import ResrlConfig
from megatron_resrl.data.packing import TokenSequence, make_micro_batches
from megatron_resrl.policy.policy import TappedStates
from megatron_resrl.subspace import token_weights
from megatron_resrl.training.residual_weights import GroupedTokenWeights

GROUPS = [5, 5, 5, 5, 2, 2, 2, 2, 9, 9, 9, 9]
LENGTHS = [7, 3, 9, 6, 4, 8, 5, 5, 6, 7, 2, 9]
POSITIVE = [True, False, True, False, True, True, False, False, False, False, False, False]
SETTINGS = ResrlConfig(rank=4, max_positive_tokens=100)


def _hidden() -> torch.Tensor:
    return torch.randn(12, 9, 16, generator=torch.Generator().manual_seed(1))


def _stream(micro_batch_size: int) -> GroupedTokenWeights:
    hidden = _hidden()
    grouped = GroupedTokenWeights(
        GROUPS,
        torch.tensor(POSITIVE),
        max(LENGTHS),
        SETTINGS,
        seed=lambda group: 0,
        split_over=None,
    )
    sequences = [TokenSequence((1, 2), tuple(range(length))) for length in LENGTHS]
    for batch in make_micro_batches(sequences, micro_batch_size):
        states = hidden[batch.sequence_index, batch.response_position]
        grouped.add(TappedStates(states, torch.arange(len(states))), batch)
        alive = sum(len(held.hidden) for held in grouped._held)
        assert alive < sum(LENGTHS[:4]) or micro_batch_size > 4  # at most one group waits
    return grouped


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 4, 5, 12])
def test_weights_do_not_depend_on_the_micro_batch_size(micro_batch_size):
    grouped = _stream(micro_batch_size)
    lengths = torch.tensor(LENGTHS)
    mask = torch.arange(9) < lengths[:, None]
    expected = token_weights(
        _hidden(),
        mask,
        torch.tensor(POSITIVE),
        torch.tensor(GROUPS),
        rank=SETTINGS.rank,
        max_positive_tokens=SETTINGS.max_positive_tokens,
        quantiles=SETTINGS.quantiles,
        floor=SETTINGS.floor,
    )
    # The order of tokens differs, and with it the rounding of fp32 sums.
    torch.testing.assert_close(grouped.weights[mask], expected[mask], atol=1e-5, rtol=0)
    assert [report.skipped for report in grouped.reports] == [None, None, "no_positive"]


def test_states_are_let_go_when_their_group_is_complete():
    grouped = _stream(3)
    assert sum(len(held.hidden) for held in grouped._held) == 0


def test_micro_batches_without_tokens_are_harmless():
    grouped = GroupedTokenWeights(
        [0], torch.tensor([True]), 3, SETTINGS, seed=lambda group: 0, split_over=None
    )
    _, empty = make_micro_batches([TokenSequence((1,), (2,))], 1, count_multiple=2)
    grouped.add(TappedStates(torch.empty(0, 8), torch.empty(0, dtype=torch.int64)), empty)
    assert grouped.reports == []
    assert (grouped.weights == 1).all()
