"""The policy and its checkpoints pass their own tests on Transformer Engine's layers and Adam."""

from __future__ import annotations

import pytest
from te_on_cpu.suite import needs_engine, passes_on_engine_layers

pytestmark = needs_engine


def test_engine_layers_equal_transformers_in_every_layout() -> None:
    assert passes_on_engine_layers("tests/distributed/policy") >= 60


@pytest.mark.slow
def test_engine_layers_share_prompts_in_their_own_attention(monkeypatch) -> None:
    """No kernel is answered here: Transformer Engine's own Python makes masks, scores and sums."""
    monkeypatch.setenv("TE_WITHOUT_CUDNN", "1")
    passed = passes_on_engine_layers(
        "tests/distributed/policy/test_shared_prompts.py", "-k", "1-tp1"
    )
    assert passed == 4


def test_engine_layers_resume_and_reshard() -> None:
    assert passes_on_engine_layers("tests/distributed/checkpoint") >= 73


@pytest.mark.slow
def test_engine_layers_agree_in_other_layouts() -> None:
    assert passes_on_engine_layers("tests/distributed/policy", "-m", "slow") >= 20
