"""Paths, folders, patterns and mappings with keys of their own."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from megatron_resrl.config.load import load_recipe, recipe_yaml
from megatron_resrl.config.problems import RecipeError
from megatron_resrl.config.schema import DataConfig
from megatron_resrl.data.file_entries import kind_of, set_name
from megatron_resrl.data.prompts import load_prompts
from megatron_resrl.data.question_files import question_files, resolve_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.parquet", "c.JSON", "d.jsonl.gz", ".hidden.jsonl", "README.md"):
        (tmp_path / name).write_text("x")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "e.json.zst").write_text("x")
    return tmp_path


def names(*entries: Any, data: DataConfig | None = None) -> list[str]:
    files = question_files("data.train_files", entries, data or DataConfig())
    return [Path(file.path).name for file in files]


def test_question_files_expand_folders_and_patterns_in_order(folder: Path) -> None:
    assert names(str(folder)) == ["a.parquet", "b.jsonl", "c.JSON", "d.jsonl.gz"]
    assert names(f"{folder}/") == names(str(folder))
    assert names(f"{folder}/*") == names(str(folder))
    assert names(f"{folder}/[ab].*") == ["a.parquet", "b.jsonl"]
    assert names(f"{folder}/**/*.zst") == ["e.json.zst"]
    assert names(f"{folder}/b.jsonl", str(folder / "deep")) == ["b.jsonl", "e.json.zst"]


def test_question_files_take_a_file_named_like_a_pattern(folder: Path) -> None:
    (folder / "[a].jsonl").write_text("x")
    assert names(f"{folder}/[a].jsonl") == ["[a].jsonl"]


def test_question_files_keep_the_keys_of_an_entry_apart() -> None:
    data = DataConfig(prompt_key="q", answer_pattern="#(.*)", system_prompt="be brief")
    own = {"path": "aime.parquet", "prompt_key": None, "answer_pattern": None, "name": "hard"}
    plain, special = question_files("data.train_files", ["gsm.jsonl.gz", own], data)
    assert (plain.path, plain.name) == ("gsm.jsonl.gz", "gsm")
    assert (plain.prompt_key, plain.answer_pattern) == ("q", "#(.*)")
    assert (special.path, special.name) == ("aime.parquet", "hard")
    assert (special.prompt_key, special.answer_pattern) == (None, None)
    assert plain.system_prompt == special.system_prompt == "be brief"


def test_prompt_template_frames_the_last_question(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "{x}?"},
    ]
    rows = [{"prompt": "What is {1}?", "answer": 1}, {"prompt": chat, "answer": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"path": str(path), "prompt_template": "Q: {question} Use \\boxed{}."}
    (file,) = question_files("data.train_files", [entry], DataConfig(system_prompt="Think."))
    plain, framed = load_prompts(file)
    assert plain.messages == [
        {"role": "system", "content": "Think."},
        {"role": "user", "content": "Q: What is {1}? Use \\boxed{}."},
    ]
    assert framed.messages[:3] == chat[:3]
    assert framed.messages[3] == {"role": "user", "content": "Q: {x}? Use \\boxed{}."}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"path": "a.jsonl", "prompt_template": "Question: {q}"},
            "no place for the question; write {question} where the question is to stand",
        ),
        ("", "it is empty; give the path of a file"),
        ({"prompt_key": "q"}, "it has no path; give {path: FILE"),
        ({"path": "a.jsonl", "promptkey": "q"}, "no key 'promptkey'; did you mean prompt_key?"),
        ({"path": "a.jsonl", "weight": "q"}, "no key 'weight'; a file has answer_key, answer_pat"),
        ({"path": "a.jsonl", "prompt_key": 3}, "prompt_key is 3; give a text"),
        ({"path": 3}, "path is 3; give a text"),
        ("nowhere/*.jsonl", "no file of a known kind"),
    ],
)
def test_question_files_name_unusable_entries(entry: Any, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        names("b.jsonl", entry)
    # Ranks send each other what they found.
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert f"data.train_files = {entry!r}: " in str(caught.value)
    assert said in str(caught.value)


def test_question_files_name_empty_folders_and_shared_names(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"holds no file .* folders in it are not read"):
        names(str(folder / "deep" / ".."), {"path": str(folder.parent)})
    with pytest.raises(RecipeError, match="4 files cannot have one name"):
        names({"path": str(folder), "name": "all"})


def test_question_files_leave_missing_files_to_the_reader() -> None:
    files, problems = resolve_files("data.train_files", ["none.jsonl"], DataConfig())
    assert ([file.path for file in files], problems) == (["none.jsonl"], [])


@pytest.mark.parametrize(
    ("name", "kind", "shown"),
    [
        ("a.b.jsonl", ".jsonl", "a.b"),
        ("A.JSONL.GZ", ".jsonl", "A"),
        ("a.json.zst", ".json", "a"),
        ("a.parquet.gz", None, "a.parquet"),
        ("a.csv", None, "a"),
    ],
)
def test_question_files_show_the_kind_in_their_name(
    name: str, kind: str | None, shown: str
) -> None:
    assert (kind_of(f"data/{name}"), set_name(f"data/{name}")) == (kind, shown)


@pytest.mark.parametrize("setting", ["data.train_files", "evaluation.files"])
@pytest.mark.parametrize(
    ("given", "entries"),
    [
        ("a.jsonl", ("a.jsonl",)),
        ("data/*.jsonl", ("data/*.jsonl",)),
        ("*.jsonl", ("*.jsonl",)),
        ("['*.jsonl', 'null', '1']", ("*.jsonl", "null", "1")),
        ("{path: a.jsonl, prompt_key: q}", ({"path": "a.jsonl", "prompt_key": "q"},)),
        (
            "[a.jsonl, {path: ~/b.jsonl, answer_pattern: '#(.*)', answer_key: null}]",
            (
                "a.jsonl",
                {
                    "path": str(Path("~/b.jsonl").expanduser()),
                    "answer_pattern": "#(.*)",
                    "answer_key": None,
                },
            ),
        ),
    ],
)
def test_file_entries_survive_command_line_and_written_recipe(
    tmp_path: Path, setting: str, given: str, entries: tuple[Any, ...]
) -> None:
    recipe = load_recipe(None, [f"--{setting}", given])
    section, _, name = setting.partition(".")
    assert getattr(getattr(recipe, section), name) == entries
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(recipe))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


def test_file_entries_of_one_path_need_no_brackets(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("data:\n  train_files: 'data/*.jsonl'\n")
    recipe = load_recipe(str(tmp_path / "recipe.yaml"))
    assert recipe.data.train_files == ("data/*.jsonl",)


@pytest.mark.parametrize("text", ["data:\n  train_files: [*.jsonl]\n", "data: {train_files: *.a}"])
def test_file_entries_give_a_hint_on_a_bare_pattern_in_yaml(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"put a pattern in quotes, e\.g\. \['\*\.jsonl'\]"):
        load_recipe(str(tmp_path / "recipe.yaml"))
    with pytest.raises(RecipeError, match="put a pattern in quotes"):
        load_recipe(None, ["--data.train_files=[*.jsonl]"])
