"""Micro-batches hold every response token once, beside the state that predicts it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.data.packing import MicroBatch, TokenSequence, make_micro_batches

token = st.integers(1, 99)
sequence = st.builds(
    TokenSequence,
    prompt=st.lists(token, min_size=1, max_size=6).map(tuple),
    response=st.lists(token, max_size=6).map(tuple),
)
options = st.fixed_dictionaries(
    {
        "length_multiple": st.integers(1, 4),
        "uniform": st.booleans(),
        "count_multiple": st.integers(1, 3),
    }
)
batches = st.tuples(st.lists(sequence, min_size=1, max_size=7), st.integers(1, 4), options)


@given(batches)
def test_every_response_token_is_there_once_and_in_order(
    case: tuple[list[TokenSequence], int, dict[str, Any]],
) -> None:
    sequences, size, options = case
    seen = []
    for batch in make_micro_batches(sequences, size, **options):
        columns = (batch.sequence_index, batch.response_position, batch.targets)
        seen += zip(*(column.tolist() for column in columns), strict=True)
    assert seen == [
        (number, position, token)
        for number, one in enumerate(sequences)
        for position, token in enumerate(one.response)
    ]


@given(batches)
def test_state_index_points_at_the_token_before_each_target(
    case: tuple[list[TokenSequence], int, dict[str, Any]],
) -> None:
    sequences, size, options = case
    for batch in make_micro_batches(sequences, size, **options):
        before = batch.tokens.T.flatten()[batch.state_index].tolist()
        places = zip(batch.sequence_index.tolist(), batch.response_position.tolist(), strict=True)
        for token, (number, position) in zip(before, places, strict=True):
            one = sequences[number]
            assert token == (one.prompt + one.response)[len(one.prompt) + position - 1]


@given(batches)
def test_shapes_keep_the_promises_of_the_options(
    case: tuple[list[TokenSequence], int, dict[str, Any]],
) -> None:
    sequences, size, options = case
    made = make_micro_batches(sequences, size, **options)
    assert len(made) % options["count_multiple"] == 0
    assert all(batch.tokens.shape[1] % options["length_multiple"] == 0 for batch in made)
    assert all(1 <= len(batch.tokens) <= size for batch in made)
    if options["uniform"]:
        assert len({batch.tokens.shape for batch in made}) == 1
    else:
        longest = max(len(one) for one in sequences)
        assert all(batch.tokens.shape[1] < longest + options["length_multiple"] for batch in made)


def test_the_last_token_of_a_sequence_is_predicted_and_not_fed() -> None:
    made = make_micro_batches([TokenSequence((1, 2), (3, 4)), TokenSequence((5,), (6,))], 2)
    assert [batch.tokens.tolist() for batch in made] == [[[1, 2, 3], [5, 0, 0]]]
    assert made[0].position_ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert made[0].targets.tolist() == [3, 4, 6]


def test_appended_micro_batches_have_no_response_tokens() -> None:
    made = make_micro_batches([TokenSequence((1,), (2,))], 1, count_multiple=3)
    assert [len(batch.targets) for batch in made] == [1, 0, 0]


def test_a_sequence_without_prompt_is_refused_because_nothing_predicts_its_first_token() -> None:
    with pytest.raises(ValueError, match="sequence 1 has no prompt token"):
        make_micro_batches([TokenSequence((1,), (2,)), TokenSequence((), (2, 3))], 2)


def test_moving_to_a_device_keeps_everything() -> None:
    batch = make_micro_batches([TokenSequence((1, 2), (3, 4))], 1)[0]
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, MicroBatch)
    assert all(torch.equal(vars(moved)[name], value) for name, value in vars(batch).items())


def test_no_sequences_give_one_micro_batch_without_response_tokens():
    (batch,) = make_micro_batches([], 4, length_multiple=2)
    assert batch.tokens.shape == (1, 2)
    assert len(batch.targets) == 0
