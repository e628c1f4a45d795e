"""Every family decodes with Transformer Engine's layers as transformers does."""

from __future__ import annotations

import pytest
import tiny_families as tiny
from tiny_decoding import decode, greedy_reference


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "mixtral", "gemma3"]
)
def test_megatron_engine_on_engine_layers_equals_transformers(tmp_path, family: str) -> None:
    model = tiny.write_families(tmp_path, [family])[family]
    found = decode(model, {})
    assert found["greedy"] == [[answer, answer] for answer in greedy_reference(model)]
    assert found["repeated"] == found["sampled"]
    assert found["difference"] < 2e-5
