"""What `sft` finds wrong with a recipe before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_chat import write_chat_model, write_chat_task
from transformers import AutoTokenizer

from megatron_resrl.checks.recipe import check_recipe, inspect_recipe
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema_sft import SftRecipe


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_chat_model(tmp_path / "model")


def found(tmp_path: Path, model: Path, *overrides: str, world_size: int = 1) -> list[Problem]:
    recipe = write_chat_task(tmp_path, model={"path": str(model)})
    return check_recipe(load_recipe(str(recipe), overrides, SftRecipe), world_size, "sft")


def write_rows(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_checks_find_nothing_in_a_good_recipe(tmp_path, model):
    assert found(tmp_path, model) == []
    assert found(tmp_path, model, "--parallel.tensor_model_parallel_size=2", world_size=4) == []


@pytest.mark.parametrize(
    ("override", "setting", "said"),
    [
        ("--data.train_files=[]", "data.train_files", "there is nothing to train on"),
        ("--data.train_files=none.jsonl", "data.train_files", "there is no such file"),
        ("--evaluation.files=none.jsonl", "evaluation.files", "there is no such file"),
        ("--data.max_length=129", "data.max_length", "max_position_embeddings 128"),
        ("--batch.tokens_per_micro_batch=9", "batch.tokens_per_micro_batch", "does not fit"),
        ("--batch.global_batch_size=0", "batch.global_batch_size", "out of range"),
        ("--data.chat_template_kwargs={x: 1}", "data.chat_template_kwargs", "does not know 'x'"),
        ("--checkpoint.best_metric=eval/held/los", "checkpoint.best_metric", "do not log it"),
    ],
)
def test_checks_name_the_setting_of_fine_tuning(tmp_path, model, override, setting, said):
    (problem,) = found(tmp_path, model, override)
    assert problem.setting == setting
    assert said in problem.problem


@pytest.mark.parametrize(
    ("conflict", "said"),
    [
        ("--model.hidden_dropout=0.1", "drops other outputs"),
        ("--model.attention_dropout=0.1", "drops other attention weights"),
    ],
)
def test_checks_refuse_shared_prefixes_that_are_not_exact(tmp_path, model, conflict, said):
    assert found(tmp_path, model, conflict, "--batch.shared_prefixes=auto") == []
    (problem,) = found(tmp_path, model, conflict, "--batch.shared_prefixes=always")
    assert said in problem.problem
    assert problem.fix.endswith("or set batch.shared_prefixes: auto")


def test_checks_of_a_batch_know_the_copies_of_the_model(tmp_path, model):
    (problem,) = found(tmp_path, model, "--batch.global_batch_size=9", world_size=2)
    assert problem.problem == "not divisible by 2 data-parallel copies of the model"
    assert problem.fix == "use a multiple of 2"


def test_checks_read_the_first_conversations(tmp_path, model):
    bad = write_rows(tmp_path / "bad.jsonl", {"messages": [{"role": "user", "content": "3"}]})
    (problem,) = found(tmp_path, model, f"--data.train_files={bad}")
    assert problem.setting == "data.train_files"
    assert problem.problem.startswith("line 1: no message is the assistant's")


def test_checks_refuse_a_template_without_turns(tmp_path, model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template += "{% if add_generation_prompt %}63 {% endif %}"
    tokenizer.save_pretrained(model)
    problems = found(tmp_path, model)
    assert {problem.setting for problem in problems} == {"data.train_files", "evaluation.files"}
    assert "does not show where message 1" in problems[0].problem


def test_checks_note_nothing_of_steps_where_epochs_count(tmp_path, model):
    recipe = write_chat_task(tmp_path, model={"path": str(model)})
    late = ["--optimizer.lr_warmup_steps=50", "--evaluation.every=50", "--optimizer.lr=1e-3"]
    for own, expected in (
        ([], ["evaluation.every", "optimizer.lr_warmup_steps"]),
        (["--epochs=99"], []),
    ):
        found = inspect_recipe(load_recipe(str(recipe), [*late, *own], SftRecipe), 1, "sft")
        assert [problem.setting for problem in found] == expected
