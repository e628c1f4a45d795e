"""Which checkpoints stay."""

from __future__ import annotations

import math

import pytest

from megatron_resrl.checkpoint.retention import Retention

SCORES = {1: 0.3, 2: 0.7, 3: math.nan, 4: 0.7, 5: None, 6: 0.1}
METRICS = {step: {"score": score} for step, score in SCORES.items()} | {7: {}}


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 6)])
def test_retention_keeps_the_earliest_of_the_best_values(mode, best):
    assert Retention(best_metric="score", best_mode=mode).best(METRICS) == best


def test_retention_without_a_metric_has_no_best():
    assert Retention(best_metric="other").best(METRICS) is None
    assert Retention(best_metric="score").best({}) is None


def test_retention_rules_add_up():
    steps = range(1, 13)
    assert Retention(2).kept(steps, None) == {11, 12}
    assert Retention(1, keep_every=5).kept(steps, None) == {5, 10, 12}
    assert Retention(1, keep_every=5).kept(steps, 3) == {3, 5, 10, 12}
    assert Retention(20).kept(steps, None) == set(steps)
