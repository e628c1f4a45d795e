"""Evaluations of a tiny model: what is counted, what is kept, and that settings are followed."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
from tiny_task import write_task

from megatron_resrl import __version__
from megatron_resrl.checks.recipe import check_recipe
from megatron_resrl.config.load import load_recipe
from megatron_resrl.evaluation.plot import has_matplotlib
from megatron_resrl.evaluation.responses import read_responses
from megatron_resrl.evaluation.results import (
    SetResult,
    keep_responses,
    responses_folder,
    unused_names,
)
from megatron_resrl.evaluation.run import evaluate, evaluate_sets, graded_sets, load_evaluation_sets
from megatron_resrl.evaluation.sets import evaluation_sets
from megatron_resrl.platform.distributed import process_groups
from megatron_resrl.rollout.worker import open_worker

ROWS = [
    '{"prompt": "3 4", "answer": "3"}',
    '{"prompt": "5 6", "answer": ""}',
    '{"prompt": "9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9", "answer": "5"}',
    '{"prompt": "7 8", "answer": "7"}',
    '{"prompt": "9 10", "answer": "9"}',
    '{"prompt": "9 11", "answer": null}',
]
SLOW = """\
import time


def slow(response, ground_truth, **context):
    if ground_truth == "7":
        time.sleep(60)
    return float(ground_truth == "3")


def share(response, ground_truth, *, digit, weight=1.0, **context):
    return weight * any(word.endswith(digit) for word in response.split())
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    directory = tmp_path_factory.mktemp("task")
    (directory / "slow.py").write_text(SLOW)
    path = write_task(
        directory,
        evaluation={
            "files": [str(directory / "heldout.jsonl")],
            "samples_per_prompt": 3,
            "pass_at": [1, 3],
        },
        reward={"function": f"{directory / 'slow.py'}:slow", "workers": 1, "timeout_s": 2.0},
        rollout__record=str(directory / "record"),
    )
    (directory / "heldout.jsonl").write_text("\n".join(ROWS) + "\n")
    return load_recipe(str(path))


@pytest.fixture(scope="module")
def quick(recipe):
    """With a grader that is always done."""
    function = recipe.reward.function.replace("slow.py:slow", "reward.py:even")
    return replace(recipe, reward=replace(recipe.reward, function=function, timeout_s=30.0))


@pytest.fixture(scope="module")
def worker(quick):
    with (
        process_groups(quick.parallel, quick.seed),
        open_worker(quick, trainable=False) as worker,
    ):
        yield worker


def questions_of(recipe, worker):
    sets = evaluation_sets(
        recipe.evaluation, recipe.data, recipe.reward, recipe.rollout.max_response_length
    )
    return load_evaluation_sets(sets, recipe.data, worker.tokenizer)


def texts(worker, recipe, **settings) -> list[list[str]]:
    """[questions][samples] of responses under changed settings."""
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, **settings))
    (result,) = graded_sets(questions_of(recipe, worker), worker, recipe.seed)
    return [[r["response"] for r in line["responses"]] for line in result.lines(None)]


@pytest.mark.setting("evaluation.temperature", "evaluation.top_p")
def test_evaluation_samples_with_its_temperature_and_top_p(worker, quick):
    greedy = texts(worker, quick, temperature=0.0, top_p=1.0)
    assert all(len(set(group)) == 1 for group in greedy)
    drawn = texts(worker, quick, temperature=1.0, top_p=1.0)
    assert all(len(set(group)) > 1 for group in drawn)
    # A nucleus of the likeliest token alone.
    assert texts(worker, quick, temperature=1.0, top_p=1e-9) == greedy
    assert texts(worker, quick, temperature=1e-4, top_p=1.0) == greedy
    # The same draws from another nucleus.
    narrow = texts(worker, quick, temperature=1.0, top_p=0.3)
    assert narrow != drawn
    assert narrow != greedy


@pytest.mark.setting("evaluation.keep_responses")
def test_keep_responses_writes_every_response_with_its_step(worker, quick, tmp_path):
    recipe = replace(quick, output_dir=str(tmp_path))
    sets = questions_of(recipe, worker)
    folder = responses_folder(recipe.evaluation, recipe.output_dir)
    metrics = evaluate_sets(sets, worker, recipe.seed, 20, folder)
    path = tmp_path / "evaluation" / "step_000020" / "heldout.jsonl"
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    assert [(line["step"], line["row"], line["question"]) for line in lines] == [
        (20, 0, "3 4"),
        (20, 3, "7 8"),
        (20, 4, "9 10"),
    ]
    scores = [[r["score"] for r in line["responses"]] for line in lines]
    assert [len(group) for group in scores] == [3, 3, 3]
    # A transcript only of several turns.
    kept = {"response", "score", "timed_out", "finish_reason", "tokens"}
    assert all(set(r) == kept for line in lines for r in line["responses"])
    assert metrics["eval/heldout/avg@3"] == pytest.approx(sum(map(sum, scores)) / 9)
    cut = [r["finish_reason"] == "length" for line in lines for r in line["responses"]]
    assert metrics["eval/heldout/truncated"] == sum(cut) / 9
    off = replace(recipe.evaluation, keep_responses=False)
    folder = responses_folder(off, recipe.output_dir)
    assert evaluate_sets(sets, worker, recipe.seed, 21, folder) == metrics
    assert sorted(folder.name for folder in (tmp_path / "evaluation").iterdir()) == ["step_000020"]


def test_keep_responses_keeps_line_ends_inside_of_text(worker, quick, tmp_path):
    (questions,) = questions_of(quick, worker)
    (result,) = graded_sets([questions], worker, quick.seed)
    odd = [replace(sample, text="a\u2028b\x85c\nd") for sample in result.samples]
    for _ in range(2):
        (path,) = keep_responses([SetResult(questions, odd)], tmp_path, 1)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert json.loads(lines[0])["responses"][0]["response"] == "a\u2028b\x85c\nd"
    # What was there has moved.
    assert (tmp_path / "heldout.1.jsonl").read_text() == path.read_text()


@pytest.mark.setting("evaluation.response_format")
def test_response_format_parquet_keeps_the_same_records(worker, quick, tmp_path):
    recipe = replace(quick, output_dir=str(tmp_path))
    sets = questions_of(recipe, worker)
    parquet = replace(recipe.evaluation, response_format="parquet")
    folder = responses_folder(parquet, recipe.output_dir)
    evaluate_sets(sets, worker, recipe.seed, 20, folder, parquet.response_format)
    evaluate_sets(sets, worker, recipe.seed, 20, folder, recipe.evaluation.response_format)
    path = tmp_path / "evaluation" / "step_000020" / "heldout.parquet"
    records = read_responses(path)
    assert records == read_responses(path.with_suffix(".jsonl"))
    assert [len(record["responses"]) for record in records] == [3, 3, 3]
    (result,) = graded_sets(sets, worker, recipe.seed)
    odd = SetResult(
        sets[0], [replace(s, text="half \ud83d", transcript="t") for s in result.samples]
    )
    (path,) = keep_responses([odd], tmp_path, None, "parquet")
    (first, *_) = read_responses(path)
    assert first["responses"][0]["response"] == "half \\ud83d"
    assert first["responses"][0]["transcript"] == "t"
    assert unused_names(tmp_path)[1].name == "evaluation"
    keep_responses([odd], tmp_path / "evaluation", None, "parquet")
    assert unused_names(tmp_path)[1].name == "evaluation.1"


def test_unused_names_leave_files_that_exist_alone(tmp_path):
    assert [path.name for path in unused_names(tmp_path)] == ["evaluation.json", "evaluation"]
    (tmp_path / "evaluation" / "step_000020").mkdir(parents=True)  # Of a training run.
    assert unused_names(tmp_path)[1].name == "evaluation"
    (tmp_path / "evaluation.json").touch()
    assert [path.name for path in unused_names(tmp_path)] == ["evaluation.1.json", "evaluation.1"]


@pytest.fixture(scope="module")
def evaluated(recipe, tmp_path_factory):
    """The command, twice into one folder with slow grading; output, log and folder."""
    folder = tmp_path_factory.mktemp("run")
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("megatron_resrl").addHandler(handler)
    try:
        metrics = [evaluate(replace(recipe, output_dir=str(folder))) for _ in range(2)]
    finally:
        logging.getLogger("megatron_resrl").removeHandler(handler)
    return folder, metrics, records


def test_evaluation_counts_and_logs_what_is_left_out(evaluated):
    _, (metrics, again), said = evaluated
    assert metrics == again
    counted = {name: metrics[f"eval/heldout/{name}"] for name in ("questions", "dropped")}
    assert counted == {"questions": 3, "dropped": 3}
    assert metrics["eval/heldout/timeouts"] == 3
    assert metrics["eval/heldout/avg@3"] == pytest.approx(1 / 3)
    (dropped,) = {line for line in said if "left out" in line}
    assert "averages are over 3 questions; 3 more" in dropped
    assert "rows 1, 2, 5," in dropped
    (late,) = {line for line in said if "not graded" in line}
    assert "3 of 9 responses" in late
    assert "row 3" in late
    assert any("rollout.record and rollout.replay are for training" in line for line in said)


def test_eval_writes_its_settings_and_overwrites_nothing(evaluated, recipe):
    folder, (metrics, _), _ = evaluated
    first = json.loads((folder / "evaluation.json").read_text())
    second = json.loads((folder / "evaluation.1.json").read_text())
    assert first["metrics"] == second["metrics"] == metrics
    assert first["model"] == recipe.model.path
    assert first["code"]["megatron-resrl"] == __version__
    assert first["recipe"]["evaluation"]["top_p"] == 0.95
    assert first["recipe"]["seed"] == recipe.seed
    counts = first["sets"]["heldout"]
    assert (counts["questions"], counts["responses"], counts["timeouts"]) == (3, 9, 3)
    assert counts["dropped_rows"] == [1, 2, 5]
    # Scores 1, 0, 0 of three questions: sqrt((4/9 + 1/9 + 1/9) / 2 / 3).
    assert counts["standard_error"] == pytest.approx(1 / 3)
    for name in ("evaluation", "evaluation.1"):
        assert len((folder / name / "heldout.jsonl").read_text().splitlines()) == 3


def test_eval_prints_the_paths_it_wrote(recipe, tmp_path, capsys):
    evaluation = replace(recipe.evaluation, max_prompts=1, samples_per_prompt=1, pass_at=(1,))
    evaluate(replace(recipe, output_dir=str(tmp_path), evaluation=evaluation))
    said = capsys.readouterr().out
    assert f"written: {tmp_path / 'evaluation.json'}" in said
    assert f"written: {tmp_path / 'evaluation' / 'heldout.jsonl'}" in said
    assert "\n\n  set      questions  samples" in said
    picture = tmp_path / "evaluation.png"
    assert (f"written: {picture}" in said) == picture.exists() == has_matplotlib()


@pytest.mark.setting("reward.options")
def test_evaluate_judges_each_set_by_its_own_reward(quick, tmp_path, capsys):
    slow = quick.reward.function.replace("reward.py:even", "slow.py")
    asked = tmp_path / "asked.jsonl"
    asked.write_text("\n".join(ROWS[:1] + ROWS[3:5]) + "\n")
    entry = {"path": str(asked), "temperature": 1.0}
    files = (
        {**entry, "name": "even", "samples_per_prompt": 4, "pass_at": [2]},
        {
            **entry,
            "name": "digit",
            "reward": {"function": f"{slow}:share", "options": {"digit": "9", "weight": 0.5}},
            "max_response_length": 5,
            "max_prompts": 2,
        },
        {**entry, "name": "truth", "reward": f"{slow}:slow", "max_prompts": 1, "pass_at": [1]},
    )
    evaluation = replace(quick.evaluation, files=files, samples_per_prompt=3, pass_at=(1, 3))
    recipe = replace(
        quick,
        output_dir=str(tmp_path / "run"),
        evaluation=evaluation,
        reward=replace(quick.reward, options={}),
    )
    assert not check_recipe(recipe, 1, "eval")
    metrics = evaluate(recipe)

    def responses(name):
        lines = (tmp_path / "run" / "evaluation" / f"{name}.jsonl").read_text().splitlines()
        return [json.loads(line)["responses"] for line in lines]

    def even(text):
        return bool(text.split()) and text.split()[0].isdigit() and int(text.split()[0]) % 2 == 0

    found = {name: responses(name) for name in ("even", "digit", "truth")}
    assert [[len(group) for group in groups] for groups in found.values()] == [
        [4] * 3,
        [3] * 2,
        [3],
    ]
    for group in found["even"]:
        assert [each["score"] for each in group] == [
            float(even(each["response"])) for each in group
        ]
    for group in found["digit"]:
        assert [each["score"] for each in group] == [
            0.5 * any(word.endswith("9") for word in each["response"].split()) for each in group
        ]
        assert all(each["tokens"] <= 5 for each in group)
    assert [each["score"] for each in found["truth"][0]] == [1.0] * 3
    assert metrics["eval/truth/avg@3"] == metrics["eval/truth/pass@1"] == 1.0
    for name, samples in (("even", 4), ("digit", 3)):
        means = [sum(each["score"] for each in group) / samples for group in found[name]]
        assert metrics[f"eval/{name}/avg@{samples}"] == pytest.approx(sum(means) / len(means))
    # Of two drawn from four samples with c correct ones, none is with (4 - c)(3 - c) / 12.
    counts = [sum(each["score"] for each in group) for group in found["even"]]
    at_2 = sum(1 - max(0, (4 - c) * (3 - c)) / 12 for c in counts) / 3
    assert metrics["eval/even/pass@2"] == pytest.approx(at_2)
    assert "eval/even/pass@1" not in metrics
    assert {"eval/digit/pass@1", "eval/digit/pass@3"} <= metrics.keys()
    assert any(sum(each["score"] for each in group) for group in found["digit"])
    summary = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert summary["sets"]["digit"]["reward"] == f"{slow}:share"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"reward": "maths"}, "there is no such reward function"),
        ({"reward": {"name": "math"}}, "a reward has no key 'name'"),
        ({"reward": {"function": "math", "options": {"x": 1}}}, "takes no option 'x'"),
        ({"samples_per_prompt": 2.5}, "give an integer"),
        ({"samples_per_prompt": 0}, "it must be at least 1"),
        ({"top_p": 0}, "above 0 and at most 1"),
        ({"pass_at": [9]}, "use k from 1 to 3"),
        ({"max_response_length": 10**6}, "more than rollout.max_response_length"),
        ({"temprature": 1}, "did you mean temperature?"),
    ],
)
def test_check_recipe_refuses_wrong_keys_of_a_set(quick, entry, said):
    path = quick.evaluation.files[0]
    evaluation = replace(quick.evaluation, files=({"path": path, **entry},))
    problems = check_recipe(replace(quick, evaluation=evaluation), 1, "eval")
    assert {problem.setting for problem in problems} == {"evaluation.files"}
    assert any(said in f"{problem.problem}; {problem.fix}" for problem in problems)
