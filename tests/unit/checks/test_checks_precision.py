"""Number formats and optimizers that this machine cannot run are refused."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_check_fp8_needs_transformer_engine_and_cuda(check):
    problems = check("--precision.fp8=hybrid")
    assert {(p.setting, p.value) for p in problems} == {("precision.fp8", "hybrid")}
    text = " ".join(map(str, problems))
    assert "Transformer Engine is not installed; install the `te` extra" in text
    assert "CUDA is absent; set it to null" in text


WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
}


@pytest.mark.parametrize(
    ("settings", "config", "said"),
    [
        ((), {"hidden_size": 250}, "multiples of 16, and the model's hidden_size"),
        ((), {"intermediate_size": 1000}, "intermediate_size makes matrices of 250 on each of 4"),
        (("fp8_recipe=mxfp8",), {"head_dim": 16}, "num_key_value_heads makes matrices of 16"),
        (("fp8_recipe=blockwise",), {"hidden_size": 320}, "128, and the model's hidden_size"),
        ((), {}, None),
        (("fp8_recipe=mxfp8",), {}, None),
        (("fp8_recipe=blockwise",), {}, None),
    ],
)
def test_matrices_that_fp8_products_do_not_take_are_refused(check, settings, config, said):
    parallel = ("tensor_model_parallel_size=4", "sequence_parallel=true")
    problems = check(
        "--precision.fp8=hybrid",
        *(f"--precision.{setting}" for setting in settings),
        *(f"--parallel.{setting}" for setting in parallel),
        world_size=4,
        **WIDE | config,
    )
    found = [problem.problem for problem in problems if "tensor-parallel ranks" in problem.problem]
    assert len(found) == (said is not None)
    assert not found or said in found[0]


def test_check_fp8_refuses_gemma3(check):
    config = {"architectures": ["Gemma3ForCausalLM"], "hidden_activation": "gelu_pytorch_tanh"}
    problems = [str(problem) for problem in check("--precision.fp8=hybrid", **config)]
    assert any("FP8 is not supported for Gemma3ForCausalLM; set it to null" in p for p in problems)
    assert not any("FP8" in str(p) for p in check(**config))


def test_check_fp8_refuses_delayed_scaling_with_bf16_layers(check):
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
