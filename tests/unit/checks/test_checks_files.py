"""Tokenizers, data, rewards and outputs that cannot be read or written are refused."""

from __future__ import annotations

import pytest
from tiny_recipe import change_json
from transformers import AutoTokenizer


def test_tokenizer_without_chat_template_is_refused(refused, model):
    (model / "chat_template.jinja").unlink()
    problem = refused()
    assert (problem.setting, problem.problem) == (
        "model.path",
        "the tokenizer has no chat template",
    )
    assert "data.apply_chat_template to false" in problem.fix


def test_chat_template_is_not_needed_for_plain_prompts(check, model):
    (model / "chat_template.jinja").unlink()
    assert check("--data.apply_chat_template=false") == []
    change_json(model / "tokenizer_config.json", chat_template="{{ messages }}")
    assert check() == []


def test_check_tokenizer_looks_at_a_separate_tokenizer_instead(refused, tmp_path):
    problem = refused(f"--model.tokenizer_path={tmp_path}/other")
    assert (problem.setting, problem.value) == ("model.tokenizer_path", f"{tmp_path}/other")
    assert (problem.problem, problem.kind) == ("there is no such directory", "machine")


def test_tokens_added_to_the_tokenizer_alone_are_refused(refused, check, model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path / "other")
    problem = refused(f"--model.tokenizer_path={tmp_path}/other")
    assert (problem.setting, problem.value) == ("model.tokenizer_path", f"{tmp_path}/other")
    assert "token ids up to 64 ('[PAD]')" in problem.problem
    assert "the vocab_size in config.json is 64" in problem.problem
    assert check() == []
    tokenizer.save_pretrained(model)
    assert refused().setting == "model.path"


def test_check_tokens_takes_a_negative_pad_token_for_none(check):
    assert check(pad_token_id=-1) == []


@pytest.mark.parametrize(
    ("name", "content", "said", "right"),
    [
        ("none.jsonl", None, "there is no such file", "relative ones start from"),
        ("a.jsonl", "", "the file is empty", "with questions"),
        ("a.csv", "x", "unknown kind of file '.csv'", ".jsonl, .json, .parquet"),
    ],
)
@pytest.mark.parametrize("setting", ["data.train_files", "evaluation.files"])
def test_check_files_refuses_unusable_data_files(
    refused, tmp_path, setting, name, content, said, right
):
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    problem = refused(f"--{setting}=[{file}]")
    assert (problem.setting, problem.value) == (setting, str(file))
    assert said in problem.problem
    assert right in problem.fix


def test_commands_without_their_questions_are_refused(refused):
    assert refused("--data.train_files=[]").setting == "data.train_files"
    problem = refused("--data.train_files=[]", command="eval")
    assert (problem.setting, problem.problem) == (
        "evaluation.files",
        "there is nothing to evaluate",
    )


def test_evaluation_files_of_one_name_are_refused(refused, tmp_path):
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "test.jsonl")
        files[-1].write_text('{"prompt": "3", "answer": "4"}\n')
    problem = refused(f"--evaluation.files=[{files[0]}, {files[1]}]")
    assert problem.setting == "evaluation.files"
    assert "'test'" in problem.problem


def test_check_pass_at_needs_as_many_samples(refused):
    problem = refused("--evaluation.pass_at=[1, 8]", "--evaluation.samples_per_prompt=4")
    assert (problem.setting, problem.value) == ("evaluation.pass_at", (1, 8))
    assert "samples_per_prompt is 4" in problem.problem
    assert "1 to 4" in problem.fix


@pytest.mark.parametrize(
    ("pattern", "said"), [("(", "not a valid regular expression"), ("a+", "0 groups, not one")]
)
def test_check_answer_pattern_refuses_unusable_patterns(refused, pattern, said):
    problem = refused(f"--data.answer_pattern={pattern}")
    assert (problem.setting, problem.value) == ("data.answer_pattern", pattern)
    assert said in problem.problem


@pytest.mark.parametrize(
    ("function", "said"),
    [("maths", "math"), ("none.py:score", "none.py"), ("{file}:missing", "missing")],
)
def test_check_reward_refuses_unusable_functions(refused, tmp_path, function, said):
    file = tmp_path / "grade.py"
    file.write_text("def score(response, ground_truth):\n    return 1.0\n")
    problem = refused(f"--reward.function={function.format(file=file)}")
    assert problem.setting == "reward.function"
    assert said in str(problem)


def test_output_directory_that_is_a_file_is_refused(refused, tmp_path):
    (tmp_path / "taken").write_text("")
    problem = refused(f"--output_dir={tmp_path}/taken")
    assert (problem.setting, problem.value) == ("output_dir", f"{tmp_path}/taken")
