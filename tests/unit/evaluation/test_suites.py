"""Public benchmarks by name: their files, and how they are asked, sampled and graded."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sandboxes import require_any
from tiny_task import write_task

from megatron_resrl.checks.recipe import check_recipe
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.schema import DataConfig, EvaluationConfig, RewardConfig
from megatron_resrl.data.prompts import load_prompts
from megatron_resrl.evaluation.run import evaluate
from megatron_resrl.evaluation.sets import resolve_sets
from megatron_resrl.evaluation.suites import SUITES
from megatron_resrl.rewards.registry import load_reward

MESSAGE = [{"role": "user", "content": "Write 12 with 3 and 4."}]
TESTS = json.dumps({"asserts": ["assert double(2) == 4"]})
CALLS = json.dumps([{"f": {"a": [1]}}])
PUBLIC = {
    "aime24": {"id": "1", "problem": "What is 1+1?", "solution": "It is 2.", "answer": "2"},
    "aime25": {
        "prompt": [{"role": "user", "content": "What is 1+1?"}],
        "reward_model": {"ground_truth": {"question": "What is 1+1?", "target": "2"}},
    },
    "amc23": {"id": "0", "problem": "What is 1+1?", "answer": "2.0", "question": "What is 1+1?"},
    "math500": {"problem": "Halve 1.", "answer": "\\frac{1}{2}", "unique_id": "test/0.json"},
    "minerva": {"problem": "Halve 1.", "solution": "So it is $\\boxed{\\frac{1}{2}}$."},
    "olympiad": {"question": "Halve 1.", "final_answer": ["$\\frac{1}{2}$"], "solution": ["Easy."]},
    "gsm8k": {"question": "What is 9*2?", "answer": "9*2 = <<9*2=18>>18 dollars.\n#### 18"},
    "humaneval_plus": {"prompt": "def double(x):", "answer": TESTS},
    "mbpp_plus": {"prompt": "Write double.", "answer": TESTS},
    "livecodebench": {"prompt": MESSAGE, "reward_model": {"ground_truth": TESTS}},
    "codeforces": {"prompt": "Write double.", "answer": TESTS},
    "bfcl": {"prompt": MESSAGE, "answer": CALLS},
    "bfcl_multi_turn": {"prompt": MESSAGE, "answer": "-"},
    "alfworld": {"prompt": "Your task is to put a cup on a shelf.", "answer": "game"},
    "webshop": {"prompt": "Buy a red cup.", "answer": "7"},
    "countdown": {
        "target": 12,
        "prompt": MESSAGE,
        "answer": "3 * 4 = 12 </think>\n<answer> 3 * 4 </answer>",
        "reward_model": {"ground_truth": {"numbers": [3, 4], "target": 12}, "style": "rule"},
    },
}
"""One row as the public file of a suite, or that which tools/prepare_data.py makes, has it."""
GROUND_TRUTHS = {
    **dict.fromkeys(("aime24", "aime25"), "2"),
    "amc23": "2.0",
    "math500": "\\frac{1}{2}",
    "gsm8k": "18",
    "humaneval_plus": TESTS,
    "countdown": {"numbers": [3, 4], "target": 12},
}


GRADED = [name for name, suite in SUITES.items() if suite.environment is None]
"""What can be graded without an environment."""


def write_rows(path, *rows):
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def resolved(directory, *suites, **settings):
    evaluation = EvaluationConfig(suites=suites, suites_dir=str(directory), **settings)
    return resolve_sets(evaluation, DataConfig(), RewardConfig(), 4096)


def problem_of(directory, suite, **settings):
    _, problems = resolved(directory, suite, **settings)
    (problem,) = problems
    assert problem.setting == "evaluation.suites"
    return problem


def test_suites_all_have_a_public_layout():
    assert list(PUBLIC) == list(SUITES)


@pytest.mark.parametrize("name", PUBLIC)
def test_suite_reads_questions_and_answers_of_its_file(tmp_path, name):
    write_rows(tmp_path / f"{name}.parquet", PUBLIC[name])
    (found,), problems = resolved(tmp_path, name)
    assert not problems
    (record,) = load_prompts(found.file)
    suite = SUITES[name]
    assert (found.name, found.reward.function) == (name, suite.reward)
    assert (found.samples_per_prompt, found.pass_at) == (suite.samples_per_prompt, suite.pass_at)
    assert (found.temperature, found.top_p) == (suite.temperature, suite.top_p)
    assert record.ground_truth == GROUND_TRUTHS.get(name, record.ground_truth)
    if name in GRADED:
        check = load_reward(found.reward.function, found.reward.options).check
        assert check is not None
        check(record.ground_truth)
    (message,) = record.messages
    row = PUBLIC[name]
    asked = next(row[key] for key in ("problem", "question", "prompt") if key in row)
    asked = asked if isinstance(asked, str) else asked[0]["content"]
    before, _, after = (suite.prompt_template or "{question}").partition("{question}")
    assert message == {"role": "user", "content": f"{before}{asked}{after}"}


def test_suites_of_mathematics_ask_for_a_box():
    for name in ("aime24", "aime25", "amc23", "math500", "minerva", "olympiad", "gsm8k"):
        assert SUITES[name].prompt_template.endswith("within \\boxed{}.")
        assert (SUITES[name].temperature, SUITES[name].top_p) == (0.6, 0.95)


@pytest.mark.setting("evaluation.suites", "evaluation.suites_dir")
def test_suites_are_read_from_suites_dir_or_from_a_path(tmp_path):
    (tmp_path / "aime24.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n')
    write_rows(tmp_path / "other.parquet", PUBLIC["gsm8k"])
    entry = {"suite": "gsm8k", "path": str(tmp_path / "other.parquet")}
    sets, problems = resolved(tmp_path, "aime24", entry)
    assert not problems
    assert [(each.name, each.file.path) for each in sets] == [
        ("aime24", str(tmp_path / "aime24.jsonl")),
        ("gsm8k", str(tmp_path / "other.parquet")),
    ]
    write_rows(tmp_path / "aime24.parquet", PUBLIC["aime24"])
    sets, _ = resolved(tmp_path, "aime24")
    assert sets[0].file.path == str(tmp_path / "aime24.parquet")


def test_suite_entry_wins_over_the_suite_and_the_section(tmp_path):
    write_rows(tmp_path / "aime24.parquet", {"asked": "1+1?", "said": "2"})
    entry = {
        "suite": "aime24",
        "name": "aime_easy",
        "prompt_key": "asked",
        "answer_key": "said",
        "prompt_template": None,
        "samples_per_prompt": 2,
        "pass_at": [2],
        "reward": "integer",
    }
    (found,), problems = resolved(tmp_path, entry, samples_per_prompt=3, temperature=0.1)
    assert not problems
    assert (found.name, found.samples_per_prompt, found.pass_at) == ("aime_easy", 2, (2,))
    assert (found.reward.function, found.temperature) == ("integer", 0.6)
    (record,) = load_prompts(found.file)
    assert record.messages == [{"role": "user", "content": "1+1?"}]


def test_suites_refuse_what_they_do_not_know(tmp_path):
    assert problem_of(tmp_path, "aime2024").fix == "did you mean aime24?"
    assert "suites are aime24, aime25, amc23" in problem_of(tmp_path, "chess").fix
    assert "evaluation.files" in problem_of(tmp_path, "held.jsonl").fix
    assert problem_of(tmp_path, {"path": "a.jsonl"}).problem == "it names no suite"
    write_rows(tmp_path / "aime24.parquet", PUBLIC["aime24"])
    wrong = {"suite": "aime24", "temp_erature": 1.0}
    assert problem_of(tmp_path, wrong).fix == "did you mean temperature?"
    assert "out of range" in problem_of(tmp_path, {"suite": "aime24", "top_p": 2.0}).problem


def test_suites_name_a_missing_file_and_what_makes_it(tmp_path):
    problem = problem_of(tmp_path, "math500")
    assert problem.problem == f"there is no file {tmp_path / 'math500.parquet'}"
    assert "python tools/prepare_data.py math500" in problem.fix
    assert problem.kind == "machine"


def test_suites_refuse_a_file_with_another_layout(tmp_path):
    # As HumanEval+ is published: what makes tests of it is the tool.
    write_rows(tmp_path / "humaneval_plus.parquet", {"prompt": "def f():", "test": "..."})
    problem = problem_of(tmp_path, "humaneval_plus")
    assert "its columns are prompt, test" in problem.problem
    assert "tools/prepare_data.py humaneval_plus" in problem.fix
    assert "prompt and answer or prompt and reward_model.ground_truth" in problem.fix


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suites")
    for name, row in PUBLIC.items():
        write_rows(folder / f"{name}.parquet", row, row)
    path = write_task(folder, data__max_prompt_length=80, evaluation__suites_dir=str(folder))
    return load_recipe(str(path))


def with_suites(recipe, *suites, **rollout):
    evaluation = replace(recipe.evaluation, files=(), suites=suites)
    return replace(recipe, evaluation=evaluation, rollout=replace(recipe.rollout, **rollout))


@pytest.mark.parametrize(
    ("environment", "said", "fix"),
    [
        (None, "its tasks need rollout.environment alfworld", "evaluate alfworld in a run"),
        ("calculator", "its tasks need rollout.environment alfworld", "set that"),
    ],
)
def test_suites_of_agents_need_their_environment(recipe, environment, said, fix):
    recipe = with_suites(recipe, "alfworld", environment=environment)
    (problem,) = check_recipe(recipe, 1, "eval")
    assert (problem.setting, problem.value) == ("evaluation.suites", "alfworld")
    assert problem.problem == said
    assert fix in problem.fix


def test_suites_count_as_something_to_evaluate(recipe):
    assert not check_recipe(with_suites(recipe, "aime24"), 1, "eval")
    (problem,) = check_recipe(with_suites(recipe), 1, "eval")
    assert problem.problem == "there is nothing to evaluate"


def test_suite_twice_is_refused_in_the_name_of_suites(recipe):
    (problem,) = check_recipe(with_suites(recipe, "aime24", "aime24"), 1, "eval")
    assert problem.setting == "evaluation.suites"
    assert "two files share the name 'aime24'" in problem.problem


def test_suites_run_end_to_end_with_a_tiny_model(recipe, tmp_path):
    require_any()
    recipe = replace(with_suites(recipe, *GRADED), output_dir=str(tmp_path))
    assert not [each for each in check_recipe(recipe, 1, "eval") if each.kind != "note"]
    metrics = evaluate(recipe)
    for name in GRADED:
        assert metrics[f"eval/{name}/questions"] == 2
        assert f"eval/{name}/avg@{SUITES[name].samples_per_prompt}" in metrics
        lines = (tmp_path / "evaluation" / f"{name}.jsonl").read_text().splitlines()
        responses = [len(json.loads(line)["responses"]) for line in lines]
        assert responses == [SUITES[name].samples_per_prompt] * 2
