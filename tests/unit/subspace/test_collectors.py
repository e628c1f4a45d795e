"""Which way to the bases a run takes."""

from __future__ import annotations

import pytest

from megatron_resrl.subspace import automatic_method


@pytest.mark.parametrize(
    ("positive_tokens", "hidden_size", "method"),
    [
        (1, 32, "rows"),
        (4096, 576, "rows"),  # the quickstart's model, at most the default sample
        (4096, 8192, "rows"),
        (32 * 576, 576, "rows"),
        (32 * 576 + 1, 576, "gram"),
    ],
)
def test_automatic_method_is_gram_beyond_32_h_tokens(positive_tokens, hidden_size, method):
    assert automatic_method(positive_tokens, hidden_size) == method
