"""The policy and its checkpoints pass their own tests on Transformer Engine's layers and Adam."""

from __future__ import annotations

import pytest
from te_on_cpu.suite import needs_engine, passes_on_engine_layers

pytestmark = needs_engine


def test_engine_layers_equal_transformers_in_every_layout() -> None:
    passed = passes_on_engine_layers(
        "tests/distributed/policy/test_policy_parity.py",
        "tests/distributed/policy/test_shared_prompts.py",
    )
    assert passed >= 40


@pytest.mark.slow
def test_engine_layers_share_prompts_in_their_own_attention(monkeypatch) -> None:
    """No kernel is answered here: Transformer Engine's own Python makes masks, scores and sums."""
    monkeypatch.setenv("TE_WITHOUT_CUDNN", "1")
    passed = passes_on_engine_layers(
        "tests/distributed/policy/test_shared_prompts.py", "-k", "1-tp1"
    )
    assert passed == 4


def test_engine_layers_resume() -> None:
    assert passes_on_engine_layers("tests/distributed/checkpoint/test_checkpoint_resume.py") >= 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "tests", [("policy", 60), ("checkpoint", 73)], ids=["policy", "checkpoint"]
)
def test_engine_layers_pass_all_tests_of_a_room(tests: tuple[str, int]) -> None:
    room, number = tests
    assert passes_on_engine_layers(f"tests/distributed/{room}") >= number


@pytest.mark.slow
def test_engine_layers_agree_in_other_layouts() -> None:
    assert passes_on_engine_layers("tests/distributed/policy", "-m", "slow") >= 20
