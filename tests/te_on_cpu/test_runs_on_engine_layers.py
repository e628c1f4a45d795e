"""Decoding, training steps, conversion and whole runs pass their own tests on Transformer Engine's
layers and Adam."""

from __future__ import annotations

import pytest
from te_on_cpu.suite import needs_engine, passes_on_engine_layers

pytestmark = needs_engine

STEPS = (
    "1-one=much at once over two steps",
    "1-one=one pass, shared prompts",
    "2-TP2+SP=much at once",
    "2-PP2=much at once, tied matrices",
    "2-CP2 packed=much at once over two steps",
    "2-DP2=one pass, grpo",
    "2-EP2=one pass, experts",
    "2-TP2+SP packed=one pass, shared prompts",
)
"""Ranks, layouts and cases of the reference step; the others are left to the slow test below."""


def test_fp8_trains_resumes_and_every_family_decodes() -> None:
    assert passes_on_engine_layers("tests/te_on_cpu/inside") >= 99


def test_steps_decoding_and_conversion() -> None:
    steps = "tests/distributed/training/test_reference_step.py::" + (
        "test_step_equals_the_reference_in_every_weight_and_number"
    )
    passed = passes_on_engine_layers(
        *(f"{steps}[{case}]" for case in STEPS),
        "tests/distributed/rollout/test_episodes.py",
        "tests/distributed/rollout/test_idle_replica.py",
        "tests/distributed/conversion/test_conversion_ranks.py",
    )
    assert passed >= len(STEPS) + 6


def test_train_on_engine_layers_resumes_to_the_same_bits() -> None:
    tests = "tests/end_to_end/test_train_and_resume.py"
    assert passes_on_engine_layers(tests, "-k", "writes_metrics or killed_resumes") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "tests",
    [
        ("tests/te_on_cpu/inside", "-m", "slow"),
        ("tests/distributed/rollout", "--ignore=tests/distributed/rollout/weight_sync"),
        ("tests/distributed/training", "tests/distributed/subspace"),
        ("tests/distributed/conversion",),
        ("tests/end_to_end", "-m", "not vllm and not slow and not faults"),
    ],
    ids=["layouts in FP8", "rollout", "training", "conversion", "runs"],
)
def test_engine_layers_pass_all_other_tests(tests: tuple[str, ...]) -> None:
    assert passes_on_engine_layers(*tests, timeout=3600) >= 14
