"""Recipes from YAML and the command line."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from megatron_resrl.config.load import load_recipe, read_recipe, recipe_yaml
from megatron_resrl.config.problems import RecipeError
from megatron_resrl.config.recipe_schema import schema_of
from megatron_resrl.config.schema import Recipe


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def messages(path: str | None, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return [str(problem) for problem in error.value.problems]


def test_load_recipe_without_file_has_every_default() -> None:
    assert load_recipe(None) == Recipe()


def test_load_recipe_puts_yaml_into_frozen_dataclasses(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "steps: 7\noptimizer: {lr: 1e-5}\ndata:\n  train_files: [a.jsonl, b.jsonl]\n"
        "resrl:\n  quantiles: [0, 0.9]\nmodel:\n  megatron:\n    init_method_std: 2e-2\nrollout:\n",
    )
    recipe = load_recipe(path)
    assert (recipe.steps, recipe.optimizer.lr) == (7, 1e-5)
    assert recipe.data.train_files == ("a.jsonl", "b.jsonl")
    assert recipe.resrl.quantiles == (0.0, 0.9)
    assert recipe.model.megatron == {"init_method_std": 0.02}
    assert recipe.rollout == Recipe().rollout
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.steps = 8  # type: ignore[misc]


def test_load_recipe_lets_overrides_win_in_both_spellings(tmp_path: Path) -> None:
    path = write(tmp_path, "steps: 7\noptimizer: {lr: 1e-5, weight_decay: 0.5}\n")
    recipe = load_recipe(path, ["--optimizer.lr=2e-5", "--steps", "9"])
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.steps) == (2e-5, 0.5, 9)


def test_load_recipe_reads_lists_and_mappings_in_overrides() -> None:
    recipe = load_recipe(
        None,
        [
            "--data.train_files",
            "[a.jsonl, b.jsonl]",
            "--rollout.stop_token_ids=[1, 2]",
            "--data.chat_template_kwargs",
            '{"enable_thinking": false}',
            "--optimizer",
            "{lr: 3e-5, clip_grad: 0}",
        ],
    )
    assert recipe.data.train_files == ("a.jsonl", "b.jsonl")
    assert recipe.rollout.stop_token_ids == (1, 2)
    assert recipe.data.chat_template_kwargs == {"enable_thinking": False}
    assert (recipe.optimizer.lr, recipe.optimizer.clip_grad) == (3e-5, 0.0)


def test_load_recipe_sets_one_key_of_a_mapping_by_dotted_name(tmp_path: Path) -> None:
    path = write(tmp_path, "model:\n  megatron: {init_method_std: 0.1}\n")
    recipe = load_recipe(path, ["--model.megatron.window_size", "[4, 0]"])
    assert recipe.model.megatron == {"init_method_std": 0.1, "window_size": [4, 0]}
    nested = load_recipe(None, ["--algorithm.options.a.b=1", "--algorithm.options.a.c=x"])
    assert nested.algorithm.options == {"a": {"b": 1, "c": "x"}}


def test_load_recipe_takes_texts_as_they_are() -> None:
    recipe = load_recipe(
        None,
        ["--data.answer_pattern", r"#### ([0-9]+): *$", "--data.system_prompt=true"],
    )
    assert recipe.data.answer_pattern == r"#### ([0-9]+): *$"
    assert recipe.data.system_prompt == "true"
    assert load_recipe(None, ["--data.system_prompt", "null"]).data.system_prompt is None


def test_load_recipe_keeps_quoted_yaml_text(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "data:\n  system_prompt: 'null'\n  answer_pattern: '#(.*)'\n  train_files: ['1', 'null']\n"
        "algorithm:\n  options: {a: '#x', b: '2', '#c': 'true'}\n",
    )
    recipe = load_recipe(path)
    assert recipe.data.system_prompt == "null"
    assert recipe.data.answer_pattern == "#(.*)"
    assert recipe.data.train_files == ("1", "null")
    assert recipe.algorithm.options == {"a": "#x", "b": "2", "#c": "true"}


def test_load_recipe_expands_home_and_keeps_relative_paths() -> None:
    home = os.path.expanduser("~")
    recipe = load_recipe(
        None,
        [
            "--model.path=~/m",
            "--model.tokenizer_path=~/t",
            "--data.train_files=[~/a.jsonl, b.jsonl]",
            "--evaluation.files=[~/c.jsonl]",
            "--reward.function=~/r.py:score",
            "--output_dir=~/out",
        ],
    )
    assert recipe.model.path == f"{home}/m"
    assert recipe.model.tokenizer_path == f"{home}/t"
    assert recipe.data.train_files == (f"{home}/a.jsonl", "b.jsonl")
    assert recipe.evaluation.files == (f"{home}/c.jsonl",)
    assert recipe.reward.function == f"{home}/r.py:score"
    assert recipe.output_dir == f"{home}/out"


def test_recipe_yaml_reads_back_equal(tmp_path: Path) -> None:
    recipe = load_recipe(
        None,
        [
            "--optimizer.lr=1e-5",
            "--data.train_files=[ä.jsonl]",
            "--model.megatron={window_size: [4, 0]}",
            "--data.system_prompt=yes: 'quoted' #",
            "--rollout.stop_token_ids=[5]",
        ],
    )
    assert load_recipe(write(tmp_path, recipe_yaml(recipe))) == recipe


@pytest.mark.parametrize(
    ("text", "name", "meant", "line"),
    [
        ("optimizer:\n  lrr: 1\n", "optimizer.lrr", "optimizer.lr", 2),
        ("steps: 1\noptimzer:\n  lr: 1\n", "optimzer", "optimizer", 2),
        ("group_size: 8\n", "group_size", "rollout.group_size", 1),
        ("model:\n  sequence_parallel: true\n", "model.sequence_parallel", "parallel.", 2),
        ("rollout: {temprature: 1}\n", "rollout.temprature", "rollout.temperature", 1),
    ],
)
def test_load_recipe_names_line_and_match_of_unknown_keys(
    tmp_path: Path, text: str, name: str, meant: str, line: int
) -> None:
    path = write(tmp_path, text)
    (message,) = messages(path)
    assert message.startswith(f"{name} = ")
    assert f"{path}, line {line}" in message
    assert f"did you mean {meant}" in message


@pytest.mark.parametrize(
    ("override", "name", "meant"),
    [
        ("--optimizer.lrr=1", "optimizer.lrr", "optimizer.lr"),
        ("--optimizer={lrr: 1}", "optimizer.lrr", "optimizer.lr"),
        ("--rolout.temperature=1", "rolout.temperature", "rollout.temperature"),
        ("--tensor_model_parallel_size=2", "tensor_model", "parallel.tensor_model_parallel_size"),
    ],
)
def test_load_recipe_names_the_match_of_unknown_overrides(
    override: str, name: str, meant: str
) -> None:
    (message,) = messages(None, override)
    assert name in message
    assert "command line" in message
    assert f"did you mean {meant}?" in message


def test_load_recipe_lists_the_section_for_a_strange_name() -> None:
    (message,) = messages(None, "--checkpoint.zzz=1")
    assert "checkpoint has save_every, async_save, keep_last, keep_every, best_metric" in message


@pytest.mark.parametrize(
    ("override", "value", "expected"),
    [
        ("--steps=2.5", "2.5", "an integer"),
        ("--steps=true", "True", "an integer"),
        ("--steps=null", "None", "an integer"),
        ("--optimizer.lr=fast", "'fast'", "a number"),
        ("--data.shuffle=3", "3", "true or false"),
        ("--precision.fp8=e5m2", "'e5m2'", "one of hybrid, e4m3 or null"),
        ("--data.train_files=[1]", "[1]", "a path, or a list like [a.jsonl, {path"),
        ("--data.train_files=null", "None", "a path, or a list like [a.jsonl, {path"),
        ("--resrl.quantiles=[0.1]", "[0.1]", "2 items, each a number"),
        ("--rollout.stop_token_ids=[x]", "['x']", "each an integer or null"),
        ("--model.megatron=[1]", "[1]", "a mapping"),
        ("--optimizer=3", "3", "write its settings below it"),
    ],
)
def test_load_recipe_names_value_and_type_expected(
    override: str, value: str, expected: str
) -> None:
    (message,) = messages(None, override)
    setting = override.removeprefix("--").partition("=")[0]
    assert message.startswith(f"{setting} = {value}: ")
    assert expected in message


def test_load_recipe_names_the_line_of_a_wrong_type(tmp_path: Path) -> None:
    path = write(tmp_path, "steps: 3\noptimizer:\n  clip_grad: much\n")
    (message,) = messages(path)
    assert f"optimizer.clip_grad = 'much': wrong type ({path}, line 3); give a number" == message


def test_read_recipe_reports_all_problems_and_keeps_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, "steps: x\nseed: 5\nfoo: 1\n")
    recipe, problems = read_recipe(path, ["--optimizer.lr=y", "stray", "--resrl.rank"])
    assert {p.setting for p in problems} == {
        "steps",
        "foo",
        "optimizer.lr",
        "command line",
        "resrl.rank",
    }
    assert recipe == dataclasses.replace(Recipe(), seed=5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [1\n", "not valid YAML"),
        ("steps: 1\nsteps: 2\n", "given twice"),
        ("- steps\n", "it holds a list, not settings"),
    ],
)
def test_load_recipe_refuses_a_file_that_is_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    (message,) = messages(path)
    assert path in message
    assert said in message


def test_load_recipe_names_a_missing_file(tmp_path: Path) -> None:
    (message,) = messages(str(tmp_path / "none.yaml"))
    assert "none.yaml" in message
    assert "there is no such file" in message


def test_load_recipe_names_the_setting_of_invalid_yaml() -> None:
    (message,) = messages(None, "--data.train_files=[a")
    assert message.startswith("data.train_files = '[a'")
    assert "not valid YAML" in message


def test_load_recipe_help_lists_settings_with_docstrings() -> None:
    text = " ".join(schema_of(Recipe).parser("megatron-resrl train", "").format_help().split())
    for setting in schema_of(Recipe).settings:
        assert f"--{setting} " in text
    assert "Ranks over which each layer's matrices are split." in text
    assert "(type: float, default: 1e-06)" in text


def test_load_recipe_reads_sections_in_sections(tmp_path: Path) -> None:
    text = "reward:\n  workers: 3\n  code:\n    memory_mb: 100\n    timeout_s: 2\n"
    recipe = load_recipe(write(tmp_path, text), ["--reward.code.backend=landlock"])
    assert recipe.reward.workers == 3
    code = recipe.reward.code
    assert (code.memory_mb, code.timeout_s, code.backend) == (100, 2.0, "landlock")
    assert load_recipe(write(tmp_path, recipe_yaml(recipe))) == recipe


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("cod: 1", "reward.cod = 1: there is no such setting"),
        ("code: {memry_mb: 1}", "did you mean reward.code.memory_mb?"),
        ("code: 3", "write its settings below it, e.g. reward.code.backend"),
        ("code: {backend: docker}", "reward.code.backend = 'docker': wrong type"),
        ("code: {memory_mb: 1.5}", "give an integer"),
    ],
)
def test_load_recipe_names_wrong_inner_settings(tmp_path: Path, content: str, said: str) -> None:
    [message] = messages(write(tmp_path, f"reward:\n  {content}\n"))
    assert said in message
