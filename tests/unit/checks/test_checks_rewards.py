"""Ground truths that the reward function cannot use, and too many graders, are found by checks."""

from __future__ import annotations

import json

import pytest
from sandboxes import require_any, require_backend
from tiny_recipe import write_recipe

from megatron_resrl.checks.facts import gather_facts
from megatron_resrl.checks.recipe import inspect_recipe
from megatron_resrl.checks.rewards import sandbox_note
from megatron_resrl.config.load import load_recipe


@pytest.fixture
def questions(tmp_path):
    """Writes a file of questions with these answers."""

    def write(*answers, name="questions.jsonl"):
        rows = [json.dumps({"prompt": "3", "answer": answer}) for answer in answers]
        (tmp_path / name).write_text("\n".join(rows))
        return tmp_path / name

    return write


@pytest.mark.parametrize("setting", ["data.train_files", "evaluation.files"])
@pytest.mark.parametrize(
    ("answers", "said", "fix"),
    [
        (
            ("4", "2 apples\n#### 2", "3"),
            "cannot use 1 of the first 3 answers",
            "data.answer_pattern, e.g. '#### (.+)'",
        ),
        (("4", {"target": "3"}), "1 of the first 2 answers", "reward_model.ground_truth.target"),
        (('["assert f(1) == 2"]',) * 2, "2 of the first 2 answers", "data.answer_key"),
        ((True,), "1 of the first 1 answers", "give a number or text"),
        (("nan",), "1 of the first 1 answers", "drop the row"),
    ],
)
def test_answers_that_math_cannot_use_are_found(refused, questions, setting, answers, said, fix):
    file = questions(*answers)
    problem = refused(f"--{setting}=[{file}]")
    assert (problem.setting, problem.value) == (setting, str(file))
    assert said in problem.problem
    assert str(file) in problem.problem
    assert fix in problem.fix


def test_reward_check_uses_keys_of_a_file_and_only_its_own_files(check, questions):
    good = questions("1 apple\n#### 1", name="good.jsonl")
    entry = f"{{path: {good}, answer_pattern: '#### (.+)'}}"
    assert check(f"--data.train_files=[{entry}]", f"--evaluation.files=[{entry}]") == []
    bad = questions(True, name="bad.jsonl")
    evaluation = f"--evaluation.files=[{entry}]"
    assert check(f"--data.train_files=[{bad}]", evaluation, command="eval") == []
    assert check(f"--data.train_files=[{bad}]", "--rollout.environment=calculator") == []


def test_check_reward_asks_a_users_file_for_its_answers(refused, check, questions, tmp_path):
    file = questions("yes", "no", "perhaps")
    score = "def score(response, ground_truth, **context): return 1.0\n"
    (tmp_path / "mine.py").write_text(score)
    settings = (f"--reward.function={tmp_path / 'mine.py'}:score", f"--data.train_files=[{file}]")
    assert check(*settings) == []
    (tmp_path / "mine.py").write_text(
        f"{score}"
        "def check_ground_truth(value):\n"
        "    if value not in ('yes', 'no'):\n"
        "        raise ValueError(f'{value!r} is neither yes nor no: correct the row')\n"
    )
    problem = refused(*settings)
    assert problem.fix == "'perhaps' is neither yes nor no: correct the row"


def test_check_workers_refuses_more_graders_than_cores_run(refused, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    problem = refused("--reward.workers=9")
    assert (problem.setting, problem.value, problem.kind) == ("reward.workers", 9, "machine")
    assert "this machine has 2 cores" in problem.problem
    assert "at most 8" in problem.fix


def test_check_code_names_tests_that_cannot_be_run(refused, questions):
    require_any()
    file = questions({"inputs": ["1"], "outputs": ["1"]}, {"asserts": ["assert f(1"]})
    problem = refused(f"--data.train_files=[{file}]", "--reward.function=code")
    assert "cannot use 1 of the first 2 answers" in problem.problem
    assert "test 0 is no Python" in problem.fix


@pytest.mark.parametrize(
    ("overrides", "setting", "said", "kind"),
    [
        (("backend=rlimits",), "backend", "reach", "recipe"),
        (("backend=remote",), "backend", "no server is named", "recipe"),
        (("backend=remote", "url=http://127.0.0.1:9/"), "url", "does not run", "machine"),
        (("timeout_s=20",), "timeout_s", "reward.timeout_s = 10 s", "recipe"),
        (("packages=/nowhere",), "packages", "no such folder", "machine"),
    ],
)
def test_check_code_refuses_settings(refused, questions, overrides, setting, said, kind):
    require_any()
    file = questions({"inputs": ["1"], "outputs": ["1"]})
    settings = [f"--reward.code.{each}" for each in overrides]
    files = (f"--data.train_files=[{file}]", "--reward.function=code")
    problem = refused(*files, *settings)
    assert problem.setting == f"reward.code.{setting}"
    assert said in f"{problem.problem} {problem.fix}"
    assert problem.kind == kind


def test_check_code_asks_nothing_of_other_rewards(check):
    assert check("--reward.code.backend=rlimits") == []


@pytest.mark.parametrize(
    "environment",
    [
        ("--rollout.environment=python",),
        ("--rollout.environment=tools", "--rollout.environment_options={tools: {python: {}}}"),
    ],
)
def test_check_code_looks_at_the_tool_python(refused, environment):
    problem = refused(*environment, "--reward.code.backend=rlimits")
    assert problem.setting == "reward.code.backend"


def test_check_says_where_programs_run(model, tmp_path):
    require_backend("bubblewrap")
    recipe = str(write_recipe(tmp_path, model))
    programs = load_recipe(recipe, ["--reward.function=code"])
    assert sandbox_note(gather_facts(programs, 1)[0]) == "programs of responses run in: bubblewrap"
    refused = load_recipe(recipe, ["--reward.function=code", "--reward.code.backend=rlimits"])
    assert sandbox_note(gather_facts(refused, 1)[0]) is None
    assert sandbox_note(gather_facts(load_recipe(recipe), 1)[0]) is None


@pytest.mark.parametrize(
    ("functions", "setting", "said"),
    [
        ("[{name: maths}]", "reward.functions[0].name", "did you mean 'math'?"),
        (
            "[{name: math, options: {answer: box}}]",
            "reward.functions[0].options",
            "answer is",
        ),
        (
            "[{name: math}, {name: integer, weight: x}]",
            "reward.functions[1]",
            "weight is no",
        ),
        ("[{name: math, data_sources: [a, b]}]", "data.train_files", "no function judges rows"),
        (
            "[{name: math}, {name: countdown, data_sources: [quest*]}]",
            "data.train_files",
            "the reward function countdown cannot use 1 of the first 2 answers",
        ),
    ],
)
def test_check_refuses_functions_that_cannot_be_used(refused, tmp_path, functions, setting, said):
    rows = [
        {"prompt": "3", "answer": "4", "data_source": "questions"},
        {"prompt": "3", "answer": '{"numbers": [1], "target": 1}', "data_source": "quest"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows if "countdown" in functions else rows[:1])))
    if "countdown" in functions:
        functions = functions.replace("{name: math}", "{name: math, data_sources: [questions]}")
    problem = refused(f"--data.train_files=[{file}]", f"--reward.functions={functions}")
    assert problem.setting == setting
    assert said in f"{problem.problem} {problem.fix}"


def test_check_judges_rows_by_their_own_functions(check, tmp_path):
    rows = [
        {"prompt": "3", "answer": "4", "data_source": "sums"},
        {"prompt": "3", "answer": "C", "data_source": "choices"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    functions = (
        "[{name: integer, data_sources: sums}, {name: multiple_choice, data_sources: [choi*]}, "
        "{name: format, weight: 0.1}]"
    )
    settings = (f"--data.train_files=[{file}]", f"--reward.functions={functions}")
    assert check(*settings) == []
    entry = f"{{path: {file}, reward: {functions}}}"
    assert check(*settings, f"--evaluation.files=[{entry}]") == []


def test_check_says_where_format_decides_what_is_correct(model, tmp_path):
    def notes(functions):
        recipe = load_recipe(
            str(write_recipe(tmp_path, model)), [f"--reward.functions={functions}"]
        )
        found = inspect_recipe(recipe, 1)
        return [each for each in found if each.setting == "reward.functions"]

    (note,) = notes("[{name: format}, {name: integer}]")
    assert note.kind == "note"
    assert "decides which responses are correct" in note.problem
    assert notes("[{name: integer}, {name: format}]") == []
