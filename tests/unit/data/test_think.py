from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_families import tokenizer

from megatron_resrl.data.packing import TokenSequence
from megatron_resrl.data.think import think_marker_ids, think_mask
from megatron_resrl.errors import InputError

OPEN, CLOSE = 8, 9


def marked(prompt: list[int], response: list[int]) -> str:
    """The response with a # on every token of thinking."""
    (row,) = think_mask([TokenSequence(tuple(prompt), tuple(response))], OPEN, CLOSE).tolist()
    return "".join("#" if inside else "." for inside in row)


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        ([1], [1, OPEN, 2, 3, CLOSE, 4], ".####."),
        ([1, OPEN], [2, 3, CLOSE, 4], "###."),  # the chat template opened the span
        ([1], [1, OPEN, 2, 3], ".###"),  # cut off while thinking
        ([1], [1, CLOSE, 2], "..."),  # nothing was open
        ([1], [OPEN, CLOSE, 2, OPEN, 3, CLOSE], "##.###"),
        ([1], [OPEN, 1, OPEN, 2, CLOSE, 3], "#####."),
        ([OPEN, 1, CLOSE], [2, 3], ".."),
        ([1, OPEN], [CLOSE], "#"),
    ],
)
def test_spans_of_thinking_are_found(prompt, response, expected):
    assert marked(prompt, response) == expected


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    sequences=st.lists(
        st.tuples(
            st.lists(st.integers(5, OPEN + 1), min_size=1, max_size=6),
            st.lists(st.integers(5, OPEN + 1), min_size=1, max_size=9),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_the_mask_equals_reading_token_by_token(sequences):
    rows = think_mask([TokenSequence(tuple(p), tuple(r)) for p, r in sequences], OPEN, CLOSE)
    for row, (prompt, response) in zip(rows.tolist(), sequences, strict=True):
        inside, read = False, []
        for token in prompt + response:
            inside = inside or token == OPEN
            read.append(inside)
            inside = inside and token != CLOSE
        expected = read[len(prompt) :]
        assert row == expected + [False] * (len(row) - len(expected))


def test_markers_have_to_be_tokens_of_the_model():
    assert think_marker_ids(tokenizer(), ("w3", "w7")) == (3, 7)
    with pytest.raises(InputError, match=r"resrl\.think_markers has '<think>'.*mask_think"):
        think_marker_ids(tokenizer(), ("w3", "<think>"))
