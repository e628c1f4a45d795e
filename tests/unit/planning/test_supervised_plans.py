"""`megatron-resrl plan --stage pretrain` and `--stage sft`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from planned_models import LLAMA_8B, shape_of, write_config

from megatron_resrl.cli import main
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.config.schema_sft import SftRecipe
from megatron_resrl.config.stages import STAGES
from megatron_resrl.errors import UNUSABLE
from megatron_resrl.planning.command import by_dry_run, by_formula, job_of
from megatron_resrl.planning.gpus import Rates, find_gpu
from megatron_resrl.planning.micro_batch import micro_batch_of
from megatron_resrl.planning.options import PlanOptions

TP2 = ("--parallel.tensor_model_parallel_size", "2", "--parallel.sequence_parallel", "true")
RECIPES: dict[str, dict[str, Any]] = {
    "pretrain": {"data": {"sequence_length": 8192}, "batch": {"global_batch_size": 128}},
    "sft": {"data": {"max_length": 4096}, "batch": {"global_batch_size": 64}},
}


@pytest.fixture
def recipes(tmp_path: Path) -> dict[str, str]:
    """Of Llama 3 8B by its config.json alone, by stage."""
    model = write_config(tmp_path / "model", LLAMA_8B)
    return {stage: yaml_file(tmp_path / f"{stage}.yaml", model, stage) for stage in RECIPES}


def yaml_file(path: Path, model: Path, stage: str) -> str:
    path.write_text(yaml.safe_dump({"model": {"path": str(model)}} | RECIPES[stage]))
    return str(path)


def quick(recipes: dict[str, str], stage: str, *arguments: str) -> int:
    return main(["plan", recipes[stage], "--stage", stage, "--quick", *arguments])


def quick_json(recipes: dict[str, str], capsys: Any, stage: str, *arguments: str) -> Any:
    quick(recipes, stage, "--json", *arguments)
    return json.loads(capsys.readouterr().out)


def test_plan_of_pretraining_says_tokens_and_mfu(recipes, capsys):
    assert quick(recipes, "pretrain", *TP2) == 0
    said = capsys.readouterr().out
    assert "a step: 128 sequences of 8192 tokens; 32 micro-batches of 1 on each replica" in said
    assert "scoring" not in said
    found = quick_json(recipes, capsys, "pretrain", *TP2)
    rates, seconds = found["throughput"], found["seconds"]["step"]
    assert rates["tokens_per_second"] == pytest.approx(128 * 8192 / seconds)
    flops = shape_of(LLAMA_8B).training_flops(8192) * rates["tokens_per_second"] / 8
    assert rates["mfu"] == pytest.approx(flops / 989e12)
    assert f"MFU {rates['mfu']:.1%}" in said
    # bf16 weights, and fp32 masters and moments.
    assert found["disk"]["checkpoint"] == 14 * 8030261248
    assert "on disk: 112.4 GB of a checkpoint, 16.1 GB of the export" in said


def test_plan_of_pretraining_has_the_peak_of_the_recipe(recipes, capsys):
    known, given = (
        quick_json(recipes, capsys, "pretrain", *arguments)["throughput"]["mfu"]
        for arguments in ((), ("--logging.peak_tflops", "494.5"))
    )
    assert given == pytest.approx(2 * known)


def test_plan_of_documents_attends_less(recipes, capsys):
    mask = ("--data.document_mask", "true")
    whole = quick_json(recipes, capsys, "pretrain", *mask)
    parts = quick_json(recipes, capsys, "pretrain", *mask, "--document_tokens", "1024")
    flops = [each["ranks"][0]["phases"][0]["matrix_flops"]["bfloat16"] for each in (whole, parts)]
    # Of each token, three and a half times 4 x 4096 for half of the tokens before it, in 32 layers.
    tokens = 128 * 8192 / 8
    saved = 3.5 * 32 * 4 * 4096 * (8192 - 1024) / 2 * tokens
    assert flops[0] - flops[1] == pytest.approx(saved, rel=1e-3)
    assert whole["verdicts"] == parts["verdicts"]


def test_plan_of_fine_tuning_packs_conversations(recipes, capsys):
    lengths = ("--prompt_tokens", "300", "--response_tokens", "501")
    found = quick_json(recipes, capsys, "sft", *lengths)
    # Eight conversations of each replica feed 800 tokens each; five share a micro-batch of 4096.
    assert found["step"]["micro_batches"] == 2
    assert found["step"]["tokens"] == 64 * 801
    padded = quick_json(recipes, capsys, "sft", *lengths, "--batch.sequence_packing", "false")
    assert padded["step"]["micro_batches"] == 8


@pytest.mark.parametrize(
    ("given", "lengths"),
    [
        ((), (1, 4095)),
        (("--prompt_tokens", "96"), (96, 4000)),
        (("--response_tokens", "1000"), (3096, 1000)),
    ],
)
def test_plan_of_fine_tuning_fills_up_conversations(given, lengths, recipes, capsys):
    step = quick_json(recipes, capsys, "sft", *given)["step"]
    assert (step["prompt_tokens"], step["response_tokens"]) == lengths


@pytest.mark.parametrize(
    ("stage", "arguments", "said"),
    [
        ("sft", ["--stage", "stf"], "--stage = 'stf': it is not train or sft or pretrain; give "),
        ("sft", ["--stage", "pretrain"], "data.max_length = 4096: it is a setting of sft, not of"),
        ("sft", ["--document_tokens", "9"], "--document_tokens = 9: a plan of --stage sft does"),
        ("sft", ["--decode_host_ms", "1"], "--decode_host_ms = 1.0: a plan of --stage sft does"),
        ("sft", ["--prompt_tokens", "5000"], "--prompt_tokens = 5000: conversations are longer"),
        ("pretrain", ["--response_tokens", "5"], "--response_tokens = 5: a plan of --stage"),
        ("pretrain", ["--document_tokens", "5"], "--document_tokens = 5: attention crosses"),
        ("pretrain", ["--gpus_per_node", "7"], "batch.global_batch_size = 128: not divisible by 7"),
        (
            "pretrain",
            ["--data.sequence_length", "200000"],
            "data.sequence_length = 200000: longer than the model's positions",
        ),
        (
            "sft",
            ["--batch.tokens_per_micro_batch", "1000"],
            "batch.tokens_per_micro_batch = 1000: a conversation of data.max_length 4096 tokens",
        ),
    ],
)
def test_plan_refuses_what_a_stage_has_not(stage, arguments, said, recipes, capsys):
    assert quick(recipes, stage, *arguments) == UNUSABLE
    output = capsys.readouterr()
    assert output.out == ""
    assert said in output.err
    assert "Traceback" not in output.err


@pytest.mark.parametrize(
    ("stage", "setting"),
    [("pretrain", "batch.micro_batch_size"), ("sft", "batch.tokens_per_micro_batch")],
)
def test_search_of_a_stage_changes_its_micro_batch(stage, setting, recipes, capsys):
    ranked = quick_json(recipes, capsys, stage, "--search")
    assert {each["settings"].get(setting, "the recipe's") for each in ranked} >= {"the recipe's"}
    assert len({each["settings"].get(setting) for each in ranked}) == 4
    words = [f"--{name}={json.dumps(value)}" for name, value in ranked[0]["settings"].items()]
    found = quick_json(recipes, capsys, stage, *words)
    assert found["seconds"]["step"] == pytest.approx(ranked[0]["step_seconds"])


def test_advice_of_fine_tuning_names_its_budget(recipes, capsys):
    budget = ("--batch.tokens_per_micro_batch", "16384", "--gpu", "h200")
    assert quick(recipes, "sft", *budget) == 1
    said = capsys.readouterr().out
    assert "  - batch.tokens_per_micro_batch: 8192 halves the activations" in said


@pytest.mark.parametrize("size", [1, 4])
def test_micro_batch_changes_its_own_setting(size):
    for recipe in (PretrainRecipe(), SftRecipe()):
        found = micro_batch_of(recipe)
        changed = micro_batch_of(found.changed(recipe, size * found.least))
        assert changed.value == size * found.least


@pytest.mark.parametrize("stage", ["pretrain", pytest.param("sft", marks=pytest.mark.slow)])
def test_formulas_of_a_stage_are_near_its_dry_run(stage, tmp_path):
    """Of four layers of the 8B on two pipeline stages."""
    config = LLAMA_8B | {"num_hidden_layers": 4}
    recipe = load_recipe(
        yaml_file(tmp_path / "recipe.yaml", write_config(tmp_path / "model", config), stage),
        ["--parallel.pipeline_model_parallel_size", "2", *TP2],
        STAGES[stage],
    )
    options = PlanOptions(layers="local")
    job = job_of(recipe, shape_of(config), find_gpu("h100", Rates()), options)
    counted = {rank.role: {p.name: p for p in rank.phases} for rank in by_dry_run(job).ranks}
    for rank in by_formula(job).ranks:
        (formula,), dry = rank.phases, counted[rank.role]["update"]
        flops = [sum(phase.matrix_flops.values()) for phase in (formula, dry)]
        assert flops[0] == pytest.approx(flops[1], rel=0.01), rank.role
        for name in ("weights", "gradients", "optimizer"):
            held = [phase.peak_by_kind[name] for phase in (formula, dry)]
            assert held[0] == pytest.approx(held[1], rel=0.02), (rank.role, name)
        for traffic in formula.traffic:
            key = (traffic.group, traffic.collective)
            sent = sum(t.bytes for t in dry.traffic if (t.group, t.collective) == key)
            # Formulas leave out embedding and output matrix, a ninth beside two layers.
            assert traffic.bytes == pytest.approx(sent, rel=0.15), (rank.role, key)
