"""Decoding, training steps, conversion and whole runs pass their own tests on Transformer Engine's
layers and Adam."""

from __future__ import annotations

import pytest
from te_on_cpu.suite import needs_engine, passes_on_engine_layers

pytestmark = needs_engine


def test_fp8_trains_resumes_and_every_family_decodes() -> None:
    assert passes_on_engine_layers("tests/te_on_cpu/inside") >= 113


def test_steps_decoding_and_conversion() -> None:
    passed = passes_on_engine_layers(
        "tests/distributed/training/test_reference_step.py",
        "tests/distributed/rollout/test_episodes.py",
        "tests/distributed/rollout/test_idle_replica.py",
        "tests/distributed/conversion",
    )
    assert passed >= 60


def test_train_on_engine_layers_resumes_to_the_same_bits() -> None:
    tests = "tests/end_to_end/test_train_and_resume.py"
    assert passes_on_engine_layers(tests, "-k", "writes_metrics or killed_resumes") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "tests",
    [
        ("tests/distributed/rollout", "--ignore=tests/distributed/rollout/weight_sync"),
        ("tests/distributed/training", "tests/distributed/subspace"),
        ("tests/end_to_end", "-m", "not vllm and not slow and not faults"),
    ],
    ids=["rollout", "training", "runs"],
)
def test_engine_layers_pass_all_other_tests(tests: tuple[str, ...]) -> None:
    assert passes_on_engine_layers(*tests, timeout=3600) >= 20
