from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_families import tokenizer

from megatron_resrl.data.think import think_marker_ids, think_mask
from megatron_resrl.errors import InputError

OPEN, CLOSE = 8, 9


def mask_of(pairs: list[tuple[list[int], list[int]]]) -> list[list[bool]]:
    """The mask of prompts with responses."""
    rows = [torch.tensor(prompt + response) for prompt, response in pairs]
    prompts, responses = (torch.tensor(list(map(len, side))) for side in zip(*pairs, strict=True))
    token_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return think_mask(token_ids, prompts, responses, (OPEN, CLOSE), int(responses.max())).tolist()


def marked(prompt: list[int], response: list[int]) -> str:
    """The response with a # on every token of thinking."""
    (row,) = mask_of([(prompt, response)])
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
def test_think_mask_marks_spans_between_markers(prompt, response, expected):
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
def test_think_mask_equals_reading_token_by_token(sequences):
    for row, (prompt, response) in zip(mask_of(sequences), sequences, strict=True):
        inside, read = False, []
        for token in prompt + response:
            inside = inside or token == OPEN
            read.append(inside)
            inside = inside and token != CLOSE
        expected = read[len(prompt) :]
        assert row == expected + [False] * (len(row) - len(expected))


def test_think_marker_ids_must_be_single_tokens():
    assert think_marker_ids(tokenizer(), ("w3", "w7")) == (3, 7)
    with pytest.raises(InputError, match=r"resrl\.think_markers has '<think>'.*mask_think"):
        think_marker_ids(tokenizer(), ("w3", "<think>"))
