"""Number formats and optimizers that this machine cannot run are refused."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_fp8_without_transformer_engine_and_cuda_is_refused(check):
    problems = check("--precision.fp8=hybrid")
    assert {(p.setting, p.value) for p in problems} == {("precision.fp8", "hybrid")}
    text = " ".join(map(str, problems))
    assert "Transformer Engine is not installed; install the `te` extra" in text
    assert "CUDA is absent; set it to null" in text


def test_delayed_scaling_with_first_and_last_layers_in_bf16_is_refused(check):
    problems = check(
        "--precision.fp8=hybrid",
        "--precision.fp8_recipe=delayed",
        "--model.megatron.first_last_layers_bf16=true",
    )
    (problem,) = [p for p in problems if p.setting != "precision.fp8"]
    assert (problem.setting, problem.value) == ("model.megatron.first_last_layers_bf16", True)
    assert "tensorwise" in problem.fix


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_optimizers_that_need_cuda_are_refused_without_it(refused):
    problem = refused("--optimizer.megatron.optimizer_cpu_offload=true")
    assert problem.setting == "optimizer.megatron.optimizer_cpu_offload"
    assert "CUDA" in problem.problem
