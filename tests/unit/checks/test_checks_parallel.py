"""Layouts that do not fit the ranks, the model or the step are refused."""

from __future__ import annotations

import pytest


def test_world_size_that_does_not_divide_names_all_sizes(refused):
    problem = refused(
        "--parallel.tensor_model_parallel_size=2",
        "--parallel.pipeline_model_parallel_size=2",
        world_size=6,
    )
    assert (problem.setting, problem.value) == ("world size", 6)
    for words in ("4 =", "tensor_model_parallel_size 2", "pipeline_model_parallel_size 2"):
        assert words in problem.problem
    assert "context_parallel_size 1" in problem.problem
    assert "a multiple of 4 ranks" in problem.fix


def test_check_parallel_sequence_needs_tensor_parallel(refused):
    problem = refused("--parallel.sequence_parallel=true")
    assert (problem.setting, problem.value) == ("parallel.sequence_parallel", True)
    assert "tensor_model_parallel_size is 1" in problem.problem


def test_context_parallelism_and_packed_sequences_are_accepted(check):
    packed = "--algorithm.sequence_packing=true"
    assert check("--parallel.context_parallel_size=2", packed, world_size=2) == []


def test_check_parallel_virtual_stages_need_a_pipeline(refused):
    problem = refused("--parallel.virtual_pipeline_model_parallel_size=2")
    assert problem.setting == "parallel.virtual_pipeline_model_parallel_size"
    assert "pipeline_model_parallel_size is 1" in problem.problem


@pytest.mark.parametrize(
    ("field", "value"), [("batch_p2p_comm", True), ("overlap_p2p_comm", False)]
)
def test_check_parallel_virtual_stages_refuse_batched_sends(refused, field, value):
    problem = refused(
        "--parallel.pipeline_model_parallel_size=2",
        "--parallel.virtual_pipeline_model_parallel_size=2",
        f"--model.megatron.{field}={value}",
        world_size=2,
        num_hidden_layers=4,
    )
    assert (problem.setting, problem.value) == (f"model.megatron.{field}", value)
    assert "wrong gradients" in problem.problem


def test_prompts_must_divide_into_mini_batches(refused):
    problem = refused("--algorithm.updates_per_step=3")
    assert (problem.setting, problem.value) == ("rollout.prompts_per_step", 4)
    assert "updates_per_step, which is 3" in problem.problem
    assert "multiple of 3" in problem.fix


def test_prompts_of_a_mini_batch_must_divide_over_replicas(refused):
    problem = refused("--algorithm.updates_per_step=2", world_size=4)
    assert (problem.setting, problem.value) == ("rollout.prompts_per_step", 4)
    assert "2 prompts per mini-batch" in problem.problem
    assert "4 data-parallel copies" in problem.problem
    assert "multiple of 8" in problem.fix


@pytest.mark.parametrize(
    ("config", "what", "right"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "6 attention heads", "divides 6"),
        ({"num_attention_heads": 12, "num_key_value_heads": 3}, "3 key-value heads", "divides 3"),
        ({"intermediate_size": 42}, "an intermediate_size of 42", "divides 42"),
    ],
)
def test_tensor_parallel_size_must_fit_the_model(refused, config: dict[str, int], what, right):
    problem = refused("--parallel.tensor_model_parallel_size=4", world_size=4, **config)
    assert (problem.setting, problem.value) == ("parallel.tensor_model_parallel_size", 4)
    assert what in problem.problem
    assert right in problem.fix


def test_layers_must_divide_into_stages(refused):
    problem = refused(
        "--parallel.pipeline_model_parallel_size=2",
        "--parallel.virtual_pipeline_model_parallel_size=2",
        world_size=2,
        num_hidden_layers=6,
    )
    assert (problem.setting, problem.value) == ("parallel.pipeline_model_parallel_size", 2)
    assert "6 layers" in problem.problem
    assert "2 virtual stages" in problem.problem
    assert "divides 6" in problem.fix


def test_check_parallel_leaves_uneven_stages_to_megatron_core(check):
    overrides = ("--parallel.pipeline_model_parallel_size=2",)
    uneven = "--model.megatron.num_layers_in_first_pipeline_stage=1"
    assert check(*overrides, uneven, world_size=2, num_hidden_layers=3) == []
