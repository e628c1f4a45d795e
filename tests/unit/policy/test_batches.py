"""Micro-batches hold every response token once, beside the state that predicts it.

Under context parallelism all ranks' shares together do.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_resrl.policy.alignment import alignment
from megatron_resrl.policy.batches import (
    MicroBatch,
    TokenBatch,
    TokenSequence,
    make_micro_batches,
    parts_in_order,
)
from megatron_resrl.policy.segments import Segments, natural_order
from megatron_resrl.policy.token_budget import MicroBatchLimit

token = st.integers(1, 99)
PROMPTS = ([1, 2, 3, 4, 5], [7] * 9)


@st.composite
def one_sequence(draw: st.DrawFn) -> TokenSequence:
    """Some of the same prompt, and some whose responses begin alike."""
    prompt = draw(st.sampled_from(PROMPTS) | st.lists(token, min_size=1, max_size=6))
    response = draw(st.lists(st.integers(1, 2) | token, max_size=6))
    mask = st.lists(st.booleans(), min_size=len(response), max_size=len(response)).map(tuple)
    return TokenSequence(tuple(prompt), tuple(response), draw(st.none() | mask))


sequence = one_sequence()
Case = tuple[list[TokenSequence], int, int, dict[str, Any]]


@st.composite
def options(draw: st.DrawFn) -> tuple[int, dict[str, Any]]:
    """Context-parallel ranks, and the options that all of them share."""
    ranks = draw(st.sampled_from([1, 2, 4]))
    aligned = alignment(
        sequence_parallel_size=draw(st.integers(1, 4)), context_parallel_size=ranks
    ).length
    return ranks, {
        "length_multiple": aligned,
        "packed": draw(st.booleans()),
        "shared": draw(st.booleans()),
        "uniform": draw(st.booleans()),
        "count_multiple": draw(st.integers(1, 3)),
        "context_parallel_size": ranks,
    }


batches = st.tuples(st.lists(sequence, min_size=1, max_size=7), st.integers(1, 4), options()).map(
    lambda case: (case[0], case[1], *case[2])
)


def micro_batches(
    sequences: list[TokenSequence], micro_batch_size: int, **options: Any
) -> list[MicroBatch]:
    parts = parts_in_order(range(len(sequences)), micro_batch_size)
    return make_micro_batches(TokenBatch.from_sequences(sequences), parts, **options)


def shares(case: Case) -> list[list[MicroBatch]]:
    """[rank][micro-batch]."""
    sequences, size, ranks, options = case
    return [
        micro_batches(sequences, size, context_parallel_rank=rank, **options)
        for rank in range(ranks)
    ]


def tokens_of(batch: MicroBatch) -> list[tuple[int, int, int]]:
    """(sequence, position in the response, token) of every response token."""
    columns = (batch.sequence_index, batch.response_position, batch.targets)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(batches)
def test_micro_batches_hold_each_generated_token_once_in_order(case: Case) -> None:
    per_rank = [[token for batch in made for token in tokens_of(batch)] for made in shares(case)]
    assert all(tokens == sorted(tokens) for tokens in per_rank)
    assert sorted(itertools.chain.from_iterable(per_rank)) == [
        (number, position, token)
        for number, one in enumerate(case[0])
        for position, token in enumerate(one.response)
        if one.response_mask is None or one.response_mask[position]
    ]


@given(batches)
def test_state_index_points_at_the_token_before_each_target(case: Case) -> None:
    for batch in [batch for made in shares(case) for batch in made]:
        before = batch.tokens.T.flatten()[batch.state_index].tolist()
        positions = batch.position_ids.T.flatten()[batch.state_index].tolist()
        places = [(number, position) for number, position, _ in tokens_of(batch)]
        for token, state, (number, position) in zip(before, positions, places, strict=True):
            one = case[0][number]
            assert state == len(one.prompt) + position - 1
            assert token == (one.prompt + one.response)[state]


@given(batches)
def test_micro_batch_shares_hold_every_fed_token_once(case: Case) -> None:
    sequences, size, _, options = case
    made = shares(case)
    held = torch.cat([batch.tokens.flatten() for own in made for batch in own])
    # The budget counts what the model is fed.
    packed, shared = options["packed"], options["shared"]
    limit = MicroBatchLimit(size, None, packed, options["length_multiple"], shared)
    lengths = limit.lengths_of(TokenBatch.from_sequences(sequences))
    fed = limit.fed([batch.sequences for batch in made[0] if batch.sequences], lengths)
    tokens = [token for one in sequences for token in (one.prompt + one.response)[:-1]]
    assert int((held != 0).sum()) == len(tokens) - fed.shared
    if not options["uniform"] and len(made[0]) == -(-len(sequences) // size):
        assert len(held) == fed.positions
    if not shared:
        assert sorted(token for token in held.tolist() if token) == sorted(tokens)
        assert fed.shared == 0


@given(batches)
def test_micro_batch_states_have_read_their_sequence_only(case: Case) -> None:
    """What a query sees, in order, is its sequence up to the token before the target."""
    for rank, made in enumerate(shares(case)):
        for number, batch in enumerate(made):
            if batch.segments is None:
                continue
            others = [each[number].tokens[0] for each in shares(case)]
            order = natural_order(batch.segments.lengths, case[2])
            parts = torch.cat(others)[order].split(batch.segments.lengths)
            pieces = batch.segments.pieces(rank, case[2])
            seen = [
                torch.cat(piece.keys_of(parts))[: piece.num_keys - piece.queries + 1 + query]
                for piece in pieces
                for query in range(piece.queries)
            ]
            for state, (row, position, _) in zip(
                batch.state_index.tolist(), tokens_of(batch), strict=True
            ):
                one = case[0][row]
                before = (one.prompt + one.response)[: len(one.prompt) + position]
                assert tuple(seen[state].tolist()) == before


@given(batches)
def test_micro_batch_padding_is_where_no_token_is(case: Case) -> None:
    for batch in [batch for made in shares(case) for batch in made]:
        empty = batch.tokens == 0  # No token of a sequence is 0.
        assert (batch.padding is None) == (not empty.any())
        assert batch.padding is None or torch.equal(batch.padding, empty)
        moved = batch.to(torch.device("cpu"))
        assert batch.padding is None or torch.equal(moved.padding, empty)


@given(batches)
def test_micro_batch_shapes_keep_what_options_promise(case: Case) -> None:
    sequences, size, ranks, options = case
    multiple = options["length_multiple"]
    made = shares(case)
    shapes = [[batch.tokens.shape for batch in own] for own in made]
    numbers = [[batch.sequences for batch in own] for own in made]
    lengths = [[batch.segments and batch.segments.lengths for batch in own] for own in made]
    assert all(same == column[0] for column in (shapes, numbers, lengths) for same in column)
    assert list(itertools.chain.from_iterable(numbers[0])) == list(range(len(sequences)))
    assert len(made[0]) % options["count_multiple"] == 0
    assert all(width * ranks % multiple == 0 for _, width in shapes[0])
    if options["uniform"]:
        assert len(set(shapes[0])) == 1
    packs = [batch.segments is not None for batch in made[0]]
    assert options["shared"] or packs == [options["packed"]] * len(packs)
    assert all(packs) or not options["packed"]
    if all(packs):
        assert all(rows == 1 for rows, _ in shapes[0])
        assert [sum(own) for own in lengths[0]] == [ranks * width for _, width in shapes[0]]
        assert all(length % multiple == 0 for own in lengths[0] for length in own)
    elif not any(packs):
        assert all(1 <= rows <= size for rows, _ in shapes[0])
        longest = max(len(one) for one in sequences)
        assert all(width * ranks < longest + multiple for _, width in shapes[0])


def test_micro_batches_packed_sequences_count_own_positions() -> None:
    sequences = [TokenSequence((1, 2), (3, 4)), TokenSequence((5,), (6,))]
    (batch,) = micro_batches(sequences, 2, packed=True, length_multiple=2)
    assert batch.tokens.tolist() == [[1, 2, 3, 0, 5, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch.segments == Segments.apart((4, 2))
    assert batch.state_index.tolist() == [1, 2, 4]


def test_micro_batches_uniform_packed_end_with_padding() -> None:
    sequences = [TokenSequence((1, 2), (3, 4)), TokenSequence((5,), (6,))]
    made = micro_batches(sequences, 1, packed=True, uniform=True)
    assert [batch.segments.lengths for batch in made] == [(3,), (1, 2)]


def test_micro_batches_feed_a_shared_prompt_once() -> None:
    sequences = [
        TokenSequence((1, 2, 3), (4, 5, 6)),
        TokenSequence((9,), (8,)),
        TokenSequence((1, 2, 3), (4, 7)),
        TokenSequence((1, 2, 3), (4,)),
    ]
    (batch,) = micro_batches(sequences, 4, shared=True)
    # A sequence keeps a token of its own: the last of the prompt, where one has no other.
    assert batch.segments == Segments((2, 3, 1, 2, 1), (None, 0, None, 0, 0))
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5, 9, 3, 4, 3]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 2, 3, 2]]
    assert batch.state_index.tolist() == [2, 3, 4, 5, 6, 7, 8]
    (batch,) = micro_batches([sequences[0], sequences[2]], 2, packed=True, shared=True)
    assert batch.segments == Segments((3, 2, 1), (None, 0, 0))
    # The prompt's last state predicts the first token of both.
    assert batch.state_index.tolist() == [2, 3, 4, 2, 5]
    assert batch.targets.tolist() == [4, 5, 6, 4, 7]
    # Ranks share a prefix of a multiple of tokens only.
    (batch,) = micro_batches(
        [sequences[0], sequences[2]], 2, packed=True, shared=True, length_multiple=2
    )
    assert batch.segments == Segments((2, 4, 2), (None, 0, 0))
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5, 0, 3, 4]]


def test_micro_batches_refuse_lengths_that_ranks_cannot_share() -> None:
    with pytest.raises(ValueError, match="need a multiple of 4"):
        micro_batches([], 1, length_multiple=2, context_parallel_size=2)


def test_micro_batches_predict_the_last_token_without_feeding_it() -> None:
    made = micro_batches([TokenSequence((1, 2), (3, 4)), TokenSequence((5,), (6,))], 2)
    assert [batch.tokens.tolist() for batch in made] == [[[1, 2, 3], [5, 0, 0]]]
    assert made[0].position_ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert made[0].targets.tolist() == [3, 4, 6]


def test_micro_batches_appended_have_no_response_tokens() -> None:
    made = micro_batches([TokenSequence((1,), (2,))], 1, count_multiple=3)
    assert [len(batch.targets) for batch in made] == [1, 0, 0]


def test_token_batch_refuses_a_sequence_without_prompt() -> None:
    with pytest.raises(ValueError, match="sequence 1 has no prompt token"):
        micro_batches([TokenSequence((1,), (2,)), TokenSequence((), (2, 3))], 2)


def test_micro_batch_on_a_device_remembers_the_host() -> None:
    batch = micro_batches([TokenSequence((1, 2), (3, 4))], 1)[0]
    moved = batch.to(torch.device("meta"))
    tensors = {name: v for name, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    assert all(vars(moved)[name].device.type == "meta" for name in tensors)
    assert all(vars(moved)[name].shape == value.shape for name, value in tensors.items())
    assert moved.sequences == batch.sequences
    assert moved.host is batch
    assert moved.to(torch.device("meta")).host is batch
    assert batch.host is batch


def test_micro_batches_of_no_sequence_are_one_without_tokens():
    (batch,) = micro_batches([], 4, length_multiple=2)
    assert batch.tokens.shape == (1, 2)
    assert len(batch.targets) == 0


@given(batches)
def test_token_batch_mask_defaults_to_all_generated(case: Case) -> None:
    sequences, *rest = case
    without = [TokenSequence(one.prompt, one.response) for one in sequences]
    all_true = [
        TokenSequence(one.prompt, one.response, (True,) * len(one.response)) for one in sequences
    ]
    for left, right in zip(shares((without, *rest)), shares((all_true, *rest)), strict=True):
        for one, other in zip(left, right, strict=True):
            for name, value in vars(one).items():
                same = getattr(other, name)
                assert torch.equal(value, same) if torch.is_tensor(value) else value == same


@given(batches)
def test_loss_mask_marks_the_tokens_that_are_predicted(case: Case) -> None:
    marked = TokenBatch.from_sequences(case[0]).loss_mask
    predicted = {place[:2] for made in shares(case) for batch in made for place in tokens_of(batch)}
    assert set(map(tuple, marked.nonzero().tolist())) == predicted


def test_token_batch_refuses_a_mask_of_another_length() -> None:
    with pytest.raises(ValueError, match="sequence 0 has 2 response tokens and a mask of 1"):
        micro_batches([TokenSequence((1,), (2, 3), (True,))], 1)


@given(batches, st.data())
def test_micro_batches_of_rows_equal_those_of_the_selection(case: Case, data: st.DataObject):
    batch = TokenBatch.from_sequences(case[0])
    rows = data.draw(st.permutations(range(len(batch))).map(lambda all_rows: all_rows[:3]))
    of_rows = make_micro_batches(batch, parts_in_order(rows, case[1]))
    places = range(len(rows))
    of_selection = make_micro_batches(batch.select(rows), parts_in_order(places, case[1]))
    for one, other in zip(of_rows, of_selection, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.state_index, other.state_index)
        assert one.sequences == tuple(rows[row] for row in other.sequences)
        assert one.sequence_index.tolist() == [rows[row] for row in other.sequence_index]


@pytest.mark.parametrize("lengths", [(3, 3), (3, 2)], ids=["all states predict", "some do"])
def test_micro_batch_states_are_those_before_its_targets(lengths: tuple[int, int]) -> None:
    sequences = [TokenSequence((1,), tuple(range(length))) for length in lengths]
    for packed in (False, True):
        (batch,) = micro_batches(sequences, 2, packed=packed, length_multiple=1)
        rows, length = batch.tokens.shape
        hidden = torch.arange(length * rows).view(length, rows, 1)
        states = batch.states_of_targets(hidden)
        assert torch.equal(states.flatten(), batch.state_index)


def test_token_batch_select_keeps_widths_and_order():
    batch = TokenBatch.from_sequences([TokenSequence((1, 2), (3, 4)), TokenSequence((5,), (6,))])
    chosen = batch.select([1])
    assert chosen.token_ids.tolist() == [[5, 6, 0, 0]]
    assert chosen.loss_mask.tolist() == [[True, False]]
    assert batch.select([1, 0]).prompt_lengths.tolist() == [1, 2]
    assert batch.select([]).loss_mask.shape == (0, 2)
