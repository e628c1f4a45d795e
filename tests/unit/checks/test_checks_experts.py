"""Layouts of experts that cannot run are refused before a process group exists."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_resrl.checks.experts import EXPERT_CHECKS
from megatron_resrl.checks.facts import Facts
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import ModelConfig, ParallelConfig, Recipe, ResrlConfig
from megatron_resrl.policy.families import find_family

QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "moe_intermediate_size": 48,
}
MIXTRAL = {
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "intermediate_size": 48,
}
SETTINGS = ResrlConfig()
DENSE = {"architectures": ["Qwen3ForCausalLM"]}


def problems(
    world_size: int = 1,
    model: dict[str, Any] = QWEN3_MOE,
    resrl: ResrlConfig = SETTINGS,
    **parallel: Any,
) -> list[Problem]:
    """Of a recipe; keys `tp`, `pp`, `ep` and `etp` stand for the sizes, tp > 1 for SP too."""
    names = {
        "tp": "tensor_model_parallel_size",
        "pp": "pipeline_model_parallel_size",
        "ep": "expert_model_parallel_size",
        "etp": "expert_tensor_parallel_size",
    }
    parallel = {"sequence_parallel": parallel.get("tp", 1) > 1} | parallel
    settings = ParallelConfig(**{names.get(key, key): value for key, value in parallel.items()})
    recipe = Recipe(model=ModelConfig("models/tiny"), parallel=settings, resrl=resrl)
    facts = Facts(recipe, world_size, model)
    return [problem for check in EXPERT_CHECKS for problem in check(facts)]


def refused(*args: Any, **kwargs: Any) -> Problem:
    (problem,) = problems(*args, **kwargs)
    return problem


@pytest.mark.parametrize(
    ("world_size", "parallel"),
    [
        (1, {}),
        (2, {"tp": 2}),
        (2, {"ep": 2}),
        (2, {"tp": 2, "ep": 2, "etp": 1}),
        (4, {"tp": 2, "pp": 2, "ep": 2, "etp": 1}),
        (4, {"tp": 2, "ep": 4, "etp": 1}),
        (8, {"tp": 4, "ep": 2, "etp": 1}),
    ],
)
@pytest.mark.parametrize("model", [QWEN3_MOE, MIXTRAL], ids=["qwen3_moe", "mixtral"])
def test_check_experts_passes_layouts_that_run(
    model: dict[str, Any], world_size: int, parallel: dict[str, int]
) -> None:
    assert problems(world_size, model, **parallel) == []


def test_family_reads_both_spellings_of_the_number_of_experts() -> None:
    newer = {"architectures": QWEN3_MOE["architectures"], "num_local_experts": 8}
    counts = [find_family(config).experts for config in (QWEN3_MOE, newer, MIXTRAL, DENSE)]
    assert counts == [8, 8, 8, None]


def test_expert_sizes_of_a_dense_model_are_refused() -> None:
    first, second = problems(2, DENSE, ep=2, etp=1)
    assert (first.setting, first.value) == ("parallel.expert_model_parallel_size", 2)
    assert (second.setting, second.value) == ("parallel.expert_tensor_parallel_size", 1)
    assert first.problem == second.problem == "the model has no experts"


def test_ranks_that_share_experts_must_divide_those_of_a_stage() -> None:
    problem = refused(4, pp=2, ep=4)
    assert (problem.setting, problem.value) == ("parallel.expert_model_parallel_size", 4)
    assert "a pipeline stage has 2" in problem.problem
    assert "divides 2" in problem.fix


def test_expert_ranks_of_a_replica_must_be_the_same() -> None:
    problem = refused(12, QWEN3_MOE | {"num_experts": 9}, tp=4, ep=3, etp=1)
    assert problem.setting == "parallel.expert_model_parallel_size"
    assert "the 4 ranks of a replica's stage" in problem.problem
    assert "divides 4 or is a multiple of it" in problem.fix


def test_experts_must_divide_over_their_ranks() -> None:
    problem = refused(3, ep=3)
    assert (problem.setting, problem.value) == ("parallel.expert_model_parallel_size", 3)
    assert "8 experts" in problem.problem
    assert "divides 8" in problem.fix


def test_check_experts_needs_experts_that_divide_over_ranks() -> None:
    problem = refused(2, QWEN3_MOE | {"moe_intermediate_size": 45}, tp=2)
    assert (problem.setting, problem.value) == ("parallel.expert_tensor_parallel_size", 2)
    assert "(moe_intermediate_size) of 45" in problem.problem


def test_check_experts_of_mixtral_divide_over_ranks() -> None:
    problem = refused(2, MIXTRAL | {"intermediate_size": 45}, tp=2)
    assert (problem.setting, problem.value) == ("parallel.expert_tensor_parallel_size", 2)
    assert "(intermediate_size) of 45" in problem.problem
    assert "divides 45" in problem.fix


@pytest.mark.parametrize("parallel", [{"tp": 2, "etp": 1}, {"etp": 2}])
def test_check_experts_tensor_size_needs_expert_parallelism(
    parallel: dict[str, int],
) -> None:
    problem = refused(2, **parallel)
    assert problem.setting == "parallel.expert_tensor_parallel_size"
    assert "sums gradients of experts" in problem.problem
    assert "parallel.expert_model_parallel_size" in problem.fix


@pytest.mark.parametrize("cuda", [False, True])
def test_experts_split_both_ways_need_cuda(monkeypatch: pytest.MonkeyPatch, cuda: bool) -> None:
    monkeypatch.setattr("megatron_resrl.checks.facts.cuda_available", lambda: cuda)
    found = problems(4, tp=2, ep=2)
    assert [problem.setting for problem in found] == (
        [] if cuda else ["parallel.expert_tensor_parallel_size"]
    )
    assert all(problem.value == 2 and problem.fix == "set it to 1" for problem in found)


def test_tensor_parallel_experts_need_sequence_parallelism() -> None:
    problem = refused(2, tp=2, sequence_parallel=False)
    assert (problem.setting, problem.value) == ("parallel.sequence_parallel", False)
    assert problem.fix == "set it to true"


def test_check_experts_refuses_a_router_that_cannot_learn() -> None:
    problem = refused(1, QWEN3_MOE | {"num_experts_per_tok": 1})
    assert (problem.setting, problem.value) == ("model.path", "models/tiny")
    assert "num_experts_per_tok" in problem.problem
    assert problems(1, QWEN3_MOE | {"num_experts_per_tok": 1, "norm_topk_prob": False}) == []
    # Mixtral divides by the sum of the weights without a setting that says so.
    assert "as in every Mixtral" in refused(1, MIXTRAL | {"num_experts_per_tok": 1}).problem
