"""A metric that can never choose a best checkpoint is refused."""

from __future__ import annotations

import pytest

from megatron_resrl.checks.checkpoint import CHECKPOINT_CHECKS
from megatron_resrl.checks.facts import Facts
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import CheckpointConfig, EvaluationConfig, Recipe


def problems(best_metric: str | None, save_every: int = 5, every: int = 10) -> list[Problem]:
    evaluation = EvaluationConfig(("data/held-out.jsonl",), every, 4, pass_at=(1, 4))
    checkpoint = CheckpointConfig(save_every=save_every, best_metric=best_metric)
    facts = Facts(Recipe(checkpoint=checkpoint, evaluation=evaluation), 1, {})
    return [problem for check in CHECKPOINT_CHECKS for problem in check(facts)]


@pytest.mark.parametrize(
    "name",
    [None, "reward/mean", "eval/held-out/avg@4", "eval/held-out/pass@4"],
)
def test_best_metric_may_be_logged_or_unknown_beforehand(name):
    assert problems(name) == []


def test_best_metric_with_a_wrong_name_gets_the_nearest():
    (problem,) = problems("eval/held-out/avg@8")
    assert problem.setting == "checkpoint.best_metric"
    assert "did you mean eval/held-out/avg@4?" in problem.fix


def test_best_metric_needs_evaluations_at_saved_steps():
    (never,) = problems("eval/held-out/avg@4", every=0)
    assert "evaluation.every 5" in never.fix
    (rarely,) = problems("eval/held-out/avg@4", save_every=4, every=6)
    assert "evaluation.every is 6" in rarely.problem
    assert problems("eval/held-out/avg@4", save_every=0, every=0) == []
