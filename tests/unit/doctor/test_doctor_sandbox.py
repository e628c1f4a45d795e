"""Sandboxes of a host, for recipes that grade programs."""

from __future__ import annotations

import pytest
from sandboxes import require_backend

from megatron_resrl.config.schema import Recipe
from megatron_resrl.config.schema_questions import CodeConfig, EvaluationConfig, RewardConfig
from megatron_resrl.doctor.facts.sandbox import SandboxFacts, gather_sandbox
from megatron_resrl.doctor.needs import needs_of
from megatron_resrl.doctor.rules.sandbox import judge_sandbox


def test_needs_name_the_sandbox_of_recipes_with_code() -> None:
    code = CodeConfig(backend="landlock")
    rewarded = Recipe(reward=RewardConfig(function="code", code=code))
    assert needs_of(rewarded, "python", has_cuda=False).code == code
    assert needs_of(Recipe(), "python", has_cuda=False).code is None
    files = ("a.jsonl", {"path": "b.jsonl", "reward": {"function": "code"}})
    evaluated = Recipe(evaluation=EvaluationConfig(files=files))
    assert needs_of(evaluated, "python", has_cuda=False).code == CodeConfig()
    suites = Recipe(evaluation=EvaluationConfig(suites=("aime24", {"suite": "mbpp_plus"})))
    assert needs_of(suites, "python", has_cuda=False).code == CodeConfig()
    mathematics = Recipe(evaluation=EvaluationConfig(suites=("aime24",)))
    assert needs_of(mathematics, "python", has_cuda=False).code is None


def test_sandbox_of_a_host_that_has_one_is_no_finding() -> None:
    require_backend("bubblewrap")
    facts = gather_sandbox(CodeConfig())
    assert facts == SandboxFacts("bubblewrap")
    assert not list(judge_sandbox(facts))


def test_sandbox_that_is_missing_is_a_finding() -> None:
    facts = gather_sandbox(CodeConfig(backend="remote", url="http://127.0.0.1:9"))
    [found] = judge_sandbox(facts)
    assert (found.rule, found.severity) == ("sandbox.missing", "wrong")
    assert "http://127.0.0.1:9/run_code does not run programs" in found.problem
    assert "start SandboxFusion there" in found.remedy


@pytest.mark.parametrize(("lacking", "rules"), [({}, []), ({"bubblewrap": "closed"}, ["landlock"])])
def test_sandbox_that_holds_less_is_noted(lacking: dict[str, str], rules: list[str]) -> None:
    found = list(judge_sandbox(SandboxFacts("landlock", lacking=lacking)))
    assert [each.rule for each in found] == [f"sandbox.{each}" for each in rules]
    assert all(each.severity == "note" and "closed" in each.problem for each in found)
