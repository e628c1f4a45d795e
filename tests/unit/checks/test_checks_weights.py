"""What the headers of weight files tell is told before anything is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

LM_HEAD = "lm_head.weight"
UP = "model.layers.1.mlp.up_proj.weight"


def change(model: Path, **tensors: torch.Tensor | None) -> None:
    """Replaces tensors of the file; None removes one."""
    file = model / "model.safetensors"
    content = load_file(file) | {name.replace("__", "."): t for name, t in tensors.items()}
    save_file({name: t for name, t in content.items() if t is not None}, file)


def told(refused, model: Path, **config: object) -> str:
    problem = refused(**config)
    assert (problem.setting, problem.value) == ("model.path", str(model))
    return f"{problem.problem}; {problem.fix}"


def test_files_that_are_not_whole_are_refused(refused, model: Path) -> None:
    file = model / "model.safetensors"
    whole = file.read_bytes()
    for content in (b"", whole[:5], whole[:5000], b"<html>" * 100):
        file.write_bytes(content)
        assert "model.safetensors cannot be read (cut short or damaged" in told(refused, model)
    file.unlink()
    file.symlink_to(model / "nowhere")
    assert "model.safetensors cannot be read (No such file" in told(refused, model)


@pytest.fixture
def without_rights() -> Iterator[None]:
    """Rights count for everybody but the superuser, as whom tests may run."""
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(65534)
    yield
    if superuser:
        os.seteuid(0)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_files_that_must_not_be_read_are_said_to_be_that(
    check, model: Path, request: pytest.FixtureRequest, name: str
) -> None:
    (model / name).chmod(0)
    for folder in (model, *model.parents[:-2]):
        folder.chmod(0o755)
    request.getfixturevalue("without_rights")
    problems = [each for each in check() if each.setting == "model.path"]
    assert len(problems) == 1
    assert f"{name} cannot be read (Permission denied)" in problems[0].problem
    assert "right" in problems[0].fix


def test_tensors_that_config_json_does_not_fit_are_refused(refused, model: Path) -> None:
    change(model, **{UP.replace(".", "__"): torch.zeros(47, 32)})
    assert f"{UP} is (47, 32) instead of (48, 32)" in told(refused, model)
    change(model, **{UP.replace(".", "__"): None})
    assert f"{UP} is missing" in told(refused, model)


def test_missing_output_matrix_names_the_setting_that_ties_it(refused, model) -> None:
    for untied in (False, None):
        said = told(refused, model, tie_word_embeddings=untied)
        assert f"{LM_HEAD} is missing, and tie_word_embeddings is " in said
        assert "true would use the embedding" in said


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_check_weights_refuses_quantized_types(refused, model: Path, dtype: torch.dtype) -> None:
    tensor = load_file(model / "model.safetensors")[UP]
    change(model, **{UP.replace(".", "__"): tensor.to(dtype)})
    name = {torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8", torch.uint8: "U8"}[dtype]
    said = told(refused, model)
    assert f"{UP} is {name}" in said
    assert "without quantization: in bfloat16, float16 or float32" in said


@pytest.mark.parametrize(
    "name",
    [
        *("weight_scale", "weight_scale_inv", "input_scale", "scales", "qzeros", "weight.absmax"),
        "weight.quant_state.bitsandbytes__nf4",
    ],
)
def test_check_weights_refuses_parts_of_a_quantization(refused, model: Path, name: str) -> None:
    file = model / "model.safetensors"
    save_file(load_file(file) | {f"model.layers.0.mlp.up_proj.{name}": torch.ones(1)}, file)
    assert f"{name} is part of a quantization" in told(refused, model)


def test_tensors_that_transformers_leaves_out_are_no_problem(check, model: Path) -> None:
    names = ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.mtp.norm.weight", LM_HEAD)
    file = model / "model.safetensors"
    save_file(load_file(file) | {name: torch.ones(2) for name in names}, file)
    assert check() == []


def test_types_of_weights_may_differ(check, model: Path) -> None:
    change(model, **{UP.replace(".", "__"): torch.zeros(48, 32, dtype=torch.bfloat16)})
    assert check() == []


def test_weight_files_without_an_index_are_refused_by_name(refused, model: Path) -> None:
    (model / "model.safetensors").rename(model / "ema.safetensors")
    (model / "step_100.safetensors").write_bytes((model / "ema.safetensors").read_bytes())
    assert "several files that may be meant: ema.safetensors, step_100" in told(refused, model)


def test_check_weights_refuses_two_copies_and_an_index_of_one(refused, model: Path) -> None:
    names = load_file(model / "model.safetensors")
    (model / "part.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    index = {"weight_map": dict.fromkeys(names, "part.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "it holds the weights twice: model.safetensors" in told(refused, model)


def test_weights_in_pickles_alone_are_refused(refused, model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    said = told(refused, model)
    assert "it has no *.safetensors file" in said
    assert "tools/" not in said


def test_check_weights_refuses_an_adapter(refused, model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    assert "it holds an adapter (adapter_config.json)" in told(refused, model)


def test_headers_are_read_without_torch(model: Path) -> None:
    program = (
        "import sys\n"
        "from megatron_resrl.checks.weights import WEIGHT_CHECKS\n"
        "from megatron_resrl.checks.facts import gather_facts\n"
        "from megatron_resrl.config.schema import ModelConfig, Recipe\n"
        "facts, _ = gather_facts(Recipe(model=ModelConfig(sys.argv[1])), 1)\n"
        "print([str(p) for check in WEIGHT_CHECKS for p in check(facts)])\n"
        "print({'torch', 'transformers', 'megatron.core'} & sys.modules.keys())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, model], check=True, capture_output=True, text=True
    )
    assert result.stdout.splitlines() == ["[]", "set()"]
