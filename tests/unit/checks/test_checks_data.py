"""Rows that a run would stumble over are found by the checks, before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import change_json, write_recipe

from megatron_resrl.checks.data import first_prompt
from megatron_resrl.checks.facts import gather_facts
from megatron_resrl.checks.recipe import inspect_recipe
from megatron_resrl.config.load import load_recipe

GOOD = {"prompt": "3", "answer": "4"}


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines))
    return path


def notes(model: Path, folder: Path, *overrides: str) -> dict[str, str]:
    overrides = (*overrides, "--optimizer.lr_warmup_steps=0")
    recipe = load_recipe(str(write_recipe(folder, model)), overrides)
    found = inspect_recipe(recipe, 1)
    assert {each.kind for each in found} <= {"note"}
    return {each.setting: str(each) for each in found}


@pytest.mark.parametrize("setting", ["data.train_files", "evaluation.files"])
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{'prompt': 1}", "line 3: it is not JSON"),
        ({"query": "3", "answer": "4"}, "line 3: there is no column 'prompt' or 'question' or"),
        ({"prompt": "3"}, "line 3: there is no answer column"),
        ({"prompt": "3 \ud835", "answer": "4"}, "line 3, prompt: character 2 is half of a surr"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": "4"},
            "line 3, prompt, message 0: part 0 of its content is of type 'image'",
        ),
        (
            {"prompt": [{"role": "user", "content": "3"}, {"role": "assistant", "content": "4"}]}
            | {"answer": "4"},
            "line 3: its last message is the assistant's",
        ),
        (
            {"prompt": [{"role": "human", "content": "3"}], "answer": "4"},
            "does not know the role 'human'; did you mean user?",
        ),
        (GOOD | {"tools": [{"name": "a"}]}, "line 3: it has tools, which the chat template of"),
        (GOOD | {"tools": "a"}, "line 3, tools: it is a text, 'a'"),
    ],
)
def test_data_check_finds_a_bad_row(refused, tmp_path, setting, row, said) -> None:
    file = write(tmp_path / "rows.jsonl", GOOD, {"prompt": "5", "answer": "6"}, row)
    problem = refused(f"--{setting}=[{file}]")
    assert (problem.setting, problem.value) == (setting, str(file))
    assert said in str(problem)
    assert problem.kind == "recipe"


def test_rows_of_latin_1_and_damaged_parquet_files_are_found(refused, tmp_path) -> None:
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é", "answer": "4"}'.encode("latin-1"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    for name, said in (("latin.jsonl", "line 1: it is not UTF-8"), ("a.parquet", "not a readable")):
        assert said in refused(f"--data.train_files={tmp_path / name}").problem


def test_check_data_reads_every_file_of_a_folder(check, tmp_path) -> None:
    folder = tmp_path / "questions"
    folder.mkdir()
    for name, row in (("a", GOOD), ("b", {}), ("c", GOOD), ("d", "[]")):
        write(folder / f"{name}.jsonl", row)
    found = check(f"--data.train_files={folder}")
    assert [problem.value for problem in found] == [f"{folder}/b.jsonl", f"{folder}/d.jsonl"]


def test_keys_of_a_file_hold_for_it_alone(check, tmp_path) -> None:
    gsm = write(tmp_path / "gsm.jsonl", {"question": "3", "solution": "so #### 4"})
    aime = write(tmp_path / "aime.jsonl", {"problem": "5", "answer": "6"})
    own = f"{{path: {gsm}, answer_key: solution, answer_pattern: '#### (.+)'}}"
    assert check(f"--data.train_files=[{own}]", f"--evaluation.files={aime}") == []
    assert check(f"--data.train_files=[{own}, {aime}]") == []
    (problem,) = check(f"--data.train_files=[{own}]", "--data.prompt_key=problem")
    assert "there is no column 'problem'" in problem.problem


def test_check_data_reads_only_the_first_rows_of_a_file(check, tmp_path) -> None:
    long = {"prompt": "3", "answer": "4", "filler": "x" * 50_000}
    file = write(tmp_path / "large.jsonl", *[long] * 101, "broken")
    assert check(f"--data.train_files={file}") == []
    (problem,) = check(f"--data.train_files={write(tmp_path / 'small.jsonl', GOOD, 'broken')}")
    assert "line 2" in problem.problem


def test_check_data_finds_a_limit_that_leaves_no_question(refused, model, tmp_path) -> None:
    file = write(tmp_path / "long.jsonl", {"prompt": "3 4 5 6", "answer": "4"})
    problem = refused(f"--data.train_files={file}", "--data.max_prompt_length=3")
    assert (problem.setting, problem.value) == ("data.max_prompt_length", 3)
    assert "1 of 1 prompts are longer" in problem.problem
    assert problem.fix == "raise it; the shortest has 4"


def test_check_data_reports_template_errors_once(refused, model, tmp_path) -> None:
    (model / "chat_template.jinja").write_text("{{ tools | length }}{{ messages[0].content }}")
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", GOOD)
    problem = refused(f"--data.train_files={tmp_path}/[ab].jsonl", "--evaluation.files=[]")
    assert "refuses " in problem.problem
    assert "TypeError: object of type 'NoneType' has no len()" in str(problem)


def test_check_data_finds_arguments_unknown_to_the_template(refused, model) -> None:
    given = "{enable_thinking:false}"
    problem = refused(f"--data.chat_template_kwargs={given}")
    assert problem.setting == "data.chat_template_kwargs"
    assert "does not know 'enable_thinking:false'" in problem.problem
    assert problem.fix == "it knows none; put a blank after the colon"


def test_tokenizer_of_another_release_is_found(refused, model) -> None:
    file = model / "tokenizer.json"
    file.write_text(file.read_text().replace('"WordLevel"', '"WordLevel2"'))
    problem = refused()
    assert (problem.setting, problem.value) == ("model.path", str(model))
    assert "tokenizer.json is not understood by the installed tokenizers " in problem.problem
    assert "install the release of tokenizers that wrote it" in problem.fix


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_check_data_finds_a_damaged_tokenizer(refused, model, name) -> None:
    (model / name).write_text('{"a": ')
    assert f"{name} is not valid JSON" in refused().problem


def test_tokenizer_files_that_hold_something_else_are_found(refused, model) -> None:
    change_json(model / "tokenizer.json", added_tokens=3)
    assert "tokenizer.json is not understood" in refused().problem


def test_check_data_notes_more_prompts_per_step_than_questions(model, tmp_path) -> None:
    found = notes(model, tmp_path, "--rollout.prompts_per_step=100")
    assert found == {
        "rollout.prompts_per_step": "rollout.prompts_per_step = 100: the files have 2 questions: "
        "every one comes 50 times in one step; use at most 2, or give more questions"
    }
    assert notes(model, tmp_path, "--rollout.prompts_per_step=2") == {}


def test_check_data_notes_repeated_questions(model, tmp_path) -> None:
    other = {"prompt": "5", "answer": "6"}
    file = write(tmp_path / "rows.jsonl", GOOD, other, GOOD, GOOD, {"prompt": "5", "answer": "7"})
    found = notes(model, tmp_path, f"--data.train_files={file}", "--rollout.prompts_per_step=2")
    assert "2 of 2 questions come more than once, up to 3 times" in found["data.train_files"]
    assert f"({file}, line 1 and {file}, line 3)" in found["data.train_files"]
    assert "1 of them with different answers" in found["data.train_files"]


def test_first_prompt_is_shown_as_the_model_is_given_it(model, tmp_path) -> None:
    recipe = load_recipe(str(write_recipe(tmp_path, model)), ("--data.system_prompt=7",))
    assert first_prompt(gather_facts(recipe, 1)[0]) == "first prompt: 2 tokens, '7 3'"
    file = write(tmp_path / "bad.jsonl", "no JSON")
    recipe = load_recipe(str(write_recipe(tmp_path, model)), (f"--data.train_files={file}",))
    assert first_prompt(gather_facts(recipe, 1)[0]) is None
