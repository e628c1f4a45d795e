"""Truncated samples need a correction; bands and gates must make sense."""

from __future__ import annotations

import pytest

from megatron_resrl.checks.correction import CORRECTION_CHECKS
from megatron_resrl.checks.facts import Facts
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import CorrectionConfig, Recipe, RolloutConfig


def problems(correction: CorrectionConfig, **rollout: float) -> list[Problem]:
    facts = Facts(Recipe(rollout=RolloutConfig(**rollout), correction=correction), 1, {})
    return [problem for check in CORRECTION_CHECKS for problem in check(facts)]


@pytest.mark.parametrize(("setting", "value"), [("top_p", 0.9), ("top_k", 20)])
def test_check_truncation_needs_a_correction(setting, value):
    (problem,) = problems(CorrectionConfig(), **{setting: value})
    assert (problem.setting, problem.value) == (f"rollout.{setting}", value)
    assert "set correction.method to token_tis" in problem.fix
    for method in ("token_tis", "sequence_tis", "icepop"):
        assert problems(CorrectionConfig(method=method), **{setting: value}) == []


def test_check_truncation_refuses_a_nucleus_below_the_band():
    (problem,) = problems(CorrectionConfig(method="icepop", band=(0.5, 5.0)), top_p=0.4)
    assert problem.setting == "rollout.top_p"
    assert "drops ratios below 0.5" in problem.problem


@pytest.mark.parametrize("band", [(1.0, 5.0), (0.5, 1.0), (2.0, 0.5), (-0.1, 2.0), (0.5, 1e999)])
def test_check_band_refuses_a_band_without_one(band):
    (problem,) = problems(CorrectionConfig(band=band))
    assert problem.setting == "correction.band"
    assert "[0.5, 5.0]" in problem.fix


def test_check_gates_refuses_a_warning_above_the_stop():
    (problem,) = problems(CorrectionConfig(warn_kl=0.2, stop_kl=0.1))
    assert problem.setting == "correction.warn_kl"
    assert "stop_kl, which is 0.1" in problem.problem
    assert problems(CorrectionConfig(warn_kl=None, stop_kl=0.1)) == []
    assert problems(CorrectionConfig(warn_kl=0.1, stop_kl=0.1)) == []
