"""FP8 that this machine, or this model in this layout, cannot compute is refused."""

from __future__ import annotations

import pytest
import torch

from megatron_resrl.checks.fp8 import check_fp8_device
from megatron_resrl.config.schema import PrecisionConfig


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


MIXTURE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
}


@pytest.mark.parametrize(
    ("settings", "config", "said"),
    [
        ((), {"hidden_size": 250}, "multiples of 16, and the model's hidden_size"),
        ((), {"intermediate_size": 1000}, "intermediate_size makes matrices of 250 on each of 4"),
        (("fp8_recipe=mxfp8",), {"head_dim": 16}, "num_key_value_heads makes matrices of 16"),
        (("fp8_recipe=blockwise",), {"hidden_size": 320}, "128, and the model's hidden_size"),
        ((), MIXTURE | {"moe_intermediate_size": 96}, "moe_intermediate_size makes matrices of 24"),
        ((), MIXTURE | {"moe_intermediate_size": 128}, None),
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


@pytest.mark.parametrize(
    ("settings", "setting", "said"),
    [
        (("num_layers_at_start_in_bf16=1", "fp8_recipe=delayed"), "start", "'delayed'"),
        (("num_layers_at_end_in_bf16=1", "fp8_recipe=delayed"), "end", "'delayed'"),
        (("num_layers_at_start_in_bf16=3",), "start", "a pipeline stage's 2 layers at each end"),
        (("num_layers_at_end_in_bf16=3",), "end", "use at most 2"),
        (("num_layers_at_start_in_bf16=2", "num_layers_at_end_in_bf16=2"), "start", "all 4 layers"),
        (("num_layers_at_start_in_bf16=2", "num_layers_at_end_in_bf16=1"), None, None),
        (("num_layers_at_start_in_bf16=4", "fp8=null"), None, None),
    ],
)
def test_check_fp8_layers_in_bf16_fit_the_recipe(check, settings, setting, said):
    problems = check(
        "--precision.fp8=hybrid",
        *(f"--precision.{each}" for each in settings),
        "--parallel.pipeline_model_parallel_size=2",
        world_size=2,
        num_hidden_layers=4,
    )
    found = [problem for problem in problems if "in_bf16" in problem.setting]
    assert [problem.setting for problem in found] == (
        [f"precision.num_layers_at_{setting}_in_bf16"] if setting else []
    )
    assert not found or said in str(found[0])


@pytest.mark.parametrize(
    ("recipe", "capability", "cuda", "said"),
    [
        ("tensorwise", (8, 0), "12.9", "Ada (compute capability 8.9) or newer"),
        ("tensorwise", (8, 9), "12.4", None),
        ("delayed", (9, 0), "12.4", None),
        ("blockwise", (8, 9), "12.9", "Hopper (compute capability 9.0) or newer"),
        ("blockwise", (9, 0), "12.8", "CUDA 12.9 or newer, and torch has 12.8"),
        ("blockwise", (9, 0), "13.0", None),
        ("mxfp8", (9, 0), "13.0", "a device has 9.0"),
        ("mxfp8", (10, 0), "12.8", None),
        ("mxfp8", (10, 3), "13.0", None),
        ("mxfp8", (12, 0), "13.0", "to below 12.0, and a device has 12.0"),
    ],
)
def test_check_fp8_device_names_what_a_recipe_needs(recipe, capability, cuda, said):
    precision = PrecisionConfig(fp8="hybrid", fp8_recipe=recipe)
    problems = list(check_fp8_device(precision, capability, "a device", cuda))
    assert len(problems) == (said is not None)
    assert all(said in problem.problem for problem in problems)
    assert not list(check_fp8_device(PrecisionConfig(fp8_recipe=recipe), capability, "", cuda))


def test_check_fp8_asks_the_device(check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    problems = check("--precision.fp8=hybrid", "--precision.fp8_recipe=mxfp8")
    (problem,) = [each for each in problems if each.setting == "precision.fp8_recipe"]
    assert (problem.value, problem.kind) == ("mxfp8", "machine")
    assert "Blackwell" in problem.problem
