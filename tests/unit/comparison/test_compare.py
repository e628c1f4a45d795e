"""The command `compare` on evaluations that tests write."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from megatron_resrl.cli import main
from megatron_resrl.evaluation.responses import write_responses
from megatron_resrl.preparation.overlap import normalised

SETTINGS = {
    "samples_per_prompt": 2,
    "temperature": 0.6,
    "top_p": 0.95,
    "max_response_length": 64,
    "prompt_template": "{question} Use a box.",
}


def responses(name, scores, *, tokens=10):
    """Records of a set: one question for each list of scores."""
    return [
        {
            "step": None,
            "row": row,
            "question": f"{name} question {row}? Use a box.",
            "ground_truth": str(row),
            "responses": [
                {
                    "response": f"It is {row if score else row + 1}.",
                    "score": score,
                    "timed_out": False,
                    "finish_reason": "stop",
                    "tokens": tokens,
                    "answer": str(row if score else row + 1),
                }
                for score in several
            ],
        }
        for row, several in enumerate(scores)
    ]


def write_evaluation(folder, sets, *, ending="jsonl", recipe=None, **changes):
    """As `eval` leaves it."""
    (folder / "evaluation").mkdir(parents=True)
    for name, records in sets.items():
        write_responses(folder / "evaluation" / f"{name}.{ending}", records)
    summary = {
        "model": "m",
        "sets": {name: {"settings": SETTINGS | changes} for name in sets},
        "recipe": recipe or {},
    }
    (folder / "evaluation.json").write_text(json.dumps(summary))
    return str(folder)


def write_run(folder, sets, *, steps=2, length=20.0, recipe=None):
    """As a training run leaves it."""
    kept = folder / "evaluation" / f"step_{steps:06d}"
    kept.mkdir(parents=True)
    for name, records in sets.items():
        write_responses(kept / f"{name}.jsonl", [each | {"step": steps} for each in records])
    content = {
        "steps": steps,
        "rollout": {"prompts_per_step": 4, "group_size": 2, "max_response_length": 64},
        "evaluation": {"temperature": 0.6, "top_p": 0.95},
    } | (recipe or {})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    lines = [{"step": step, "response/length_mean": length} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def compared(capsys, *arguments):
    assert main(["compare", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *arguments):
    assert main(["compare", *arguments]) == 2
    return capsys.readouterr().err


EASY = [[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]] * 5
HARD = [[0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]] * 5


def test_compare_pairs_questions_and_averages_runs(capsys, tmp_path):
    base = write_evaluation(tmp_path / "base", {"a": responses("a", HARD)})
    first = write_evaluation(tmp_path / "one", {"a": responses("a", EASY)}, ending="parquet")
    second = write_evaluation(tmp_path / "two", {"a": responses("a", HARD)})
    found = compared(capsys, base, f"new={first},{second}", f"same={second}")
    assert (found["metric"], found["baseline"]) == ("avg", "base")
    (block,) = found["sets"]
    assert (block["set"], block["questions"], block["left_out"]) == ("a", 20, 0)
    of_base, of_new, of_same = block["arms"]
    assert (of_base["arm"], of_base["value"], of_base["runs"]) == ("base", 0.25, 1)
    assert (of_new["arm"], of_new["value"], of_new["runs"]) == ("new", (0.625 + 0.25) / 2, 2)
    assert of_new["difference"] == pytest.approx(0.1875)
    assert of_new["response_length"] == 10
    assert (of_same["difference"], of_same["interval"]) == (0, [0, 0])
    assert of_same["p_holm"] == 1
    # Two comparisons.
    assert of_new["p_holm"] == pytest.approx(min(1, 2 * of_new["p_value"]))
    assert found["budgets"] == []
    assert found == compared(capsys, base, f"new={first},{second}", f"same={second}")
    assert found != compared(capsys, base, f"new={first},{second}", f"same={second}", "--seed", "1")


def test_compare_takes_other_metrics_and_sets(capsys, tmp_path):
    sets = {"a": responses("a", HARD), "b": responses("b", EASY)}
    base = write_evaluation(tmp_path / "base", sets)
    better = {"a": responses("a", EASY), "b": responses("b", EASY)}
    other = write_evaluation(tmp_path / "other", better)
    blocks = compared(capsys, base, other, "--metric", "pass@2")["sets"]
    assert [each["set"] for each in blocks] == ["a", "b", "mean of sets"]
    assert [each["arms"][1]["value"] for each in blocks] == [0.75, 0.75, 0.75]
    assert [each["arms"][0]["value"] for each in blocks] == [0.5, 0.75, 0.625]
    assert blocks[2]["arms"][1]["difference"] == pytest.approx(0.125)
    (block,) = compared(capsys, base, other, "--metric=pass^2", "--sets=b")["sets"]
    assert (block["set"], block["arms"][0]["value"]) == ("b", 0.5)
    (block,) = compared(capsys, base, other, "--metric", "cons@2", "--sets", "b")["sets"]
    # One right and one wrong answer tie.
    assert block["arms"][0]["value"] == (1 + 0.5 + 1 + 0) / 4
    said = refusal(capsys, base, other, "--metric", "pass@3")
    assert "the set a: pass@3 of 2 samples: give a k from 1 to 2" in said
    assert "--metric best: the set a has avg, pass@K" in refusal(
        capsys, base, other, "--metric", "best"
    )
    assert "--sets c: not all runs have it" in refusal(capsys, base, other, "--sets", "c")


def test_compare_leaves_out_what_not_all_runs_answered(capsys, tmp_path):
    base = write_evaluation(tmp_path / "base", {"a": responses("a", HARD)})
    fewer = write_evaluation(tmp_path / "fewer", {"a": responses("a", HARD)[3:]})
    (block,) = compared(capsys, base, fewer)["sets"]
    assert (block["questions"], block["left_out"]) == (17, 3)
    assert block["arms"][1]["difference"] == 0
    other = [each | {"ground_truth": "9"} for each in responses("a", HARD)]
    wrong = write_evaluation(tmp_path / "wrong", {"a": other})
    said = refusal(capsys, base, wrong)
    assert "the set a: row 0 has the answer '0' in" in said
    assert "compare evaluations of the same file" in said


def test_compare_reports_budgets_that_differ(capsys, tmp_path):
    base = write_evaluation(tmp_path / "base", {"a": responses("a", HARD)})
    more = write_evaluation(
        tmp_path / "more",
        {"a": responses("a", [[*each, 0.0] for each in HARD])},
        temperature=1.0,
        prompt_template=None,
    )
    found = {each["what"]: each["values"] for each in compared(capsys, base, more)["budgets"]}
    assert found == {
        "a: samples per question": {base: [2], more: [3]},
        "a: temperature": {base: 0.6, more: 1.0},
        "a: prompt_template": {base: "{question} Use a box.", more: None},
    }


def test_compare_reports_training_budgets_of_runs(capsys, tmp_path):
    sets = {"a": responses("a", HARD)}
    base = write_run(tmp_path / "base", sets)
    near = write_run(tmp_path / "near", sets, length=21.0)
    assert compared(capsys, base, near)["budgets"] == []
    rollout = {"rollout": {"prompts_per_step": 4, "group_size": 8, "max_response_length": 64}}
    long = write_run(tmp_path / "long", sets, steps=3, recipe=rollout)
    found = {each["what"]: each["values"] for each in compared(capsys, base, long)["budgets"]}
    assert found == {
        "training steps": {base: 2, long: 3},
        "steps": {base: 2, long: 3},
        "rollout.group_size": {base: 2, long: 8},
        "tokens generated in training": {base: 20 * 8 * 2, long: 20 * 32 * 3},
    }


def test_compare_finds_training_questions_in_the_evaluation(capsys, tmp_path):
    train = tmp_path / "train.jsonl"
    train.write_text(
        '{"prompt": "A QUESTION 3 (?)", "answer": "3"}\n{"prompt": "new", "answer": "1"}\n'
    )
    recipe = {"data": {"train_files": [{"path": str(train), "prompt_template": "Hm {question}"}]}}
    base = write_evaluation(tmp_path / "base", {"a": responses("a", HARD)})
    seen = write_evaluation(tmp_path / "seen", {"a": responses("a", HARD)}, recipe=recipe)
    unknown, known = compared(capsys, base, seen)["overlap"]
    assert "names no data.train_files" in unknown["unknown"]
    assert known == {"arm": "seen", "questions": {"a": [3]}}
    assert main(["compare", base, seen]) == 0
    said = capsys.readouterr().out
    assert "training questions of seen: 1 are in a (rows 3)" in said
    assert normalised("Find $x^2$, now!") == "findx2now"


def test_compare_prints_a_table(capsys, tmp_path):
    base = write_evaluation(tmp_path / "base", {"a": responses("a", HARD)})
    other = write_evaluation(tmp_path / "other", {"a": responses("a", EASY)})
    assert main(["compare", base, other]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "avg, differences from base with 95% intervals"
    assert lines[2] == "a, 20 questions"
    row = next(line for line in lines if line.startswith("  other"))
    assert re.search(r"0\.6250 +10 +\+0\.3750 +\[\+0\.\d{4}, \+0\.\d{4}\] +0\.\d{4} +0\.\d{4}", row)
    assert any("one run only: base, other" in line for line in lines)
    assert "budgets: no difference found" in lines


def test_compare_draws_a_picture(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    base = write_evaluation(tmp_path / "base", {"a": responses("a", HARD)})
    other = write_evaluation(tmp_path / "other", {"a": responses("a", EASY)})
    picture = tmp_path / "differences.png"
    assert main(["compare", base, other, "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert "--plot a.nothing: Format 'nothing'" in refusal(
        capsys, base, other, "--plot", "a.nothing"
    )


def test_compare_refuses_what_it_cannot_compare(capsys, tmp_path):
    sets = {"a": responses("a", HARD)}
    base = write_evaluation(tmp_path / "base", sets)
    assert "give at least two evaluations, the baseline first" in refusal(capsys, base)
    assert "there is no evaluation with its responses" in refusal(capsys, base, str(tmp_path))
    assert "two arms are called 'base'" in refusal(capsys, base, base)
    assert "did you mean --metric?" in refusal(capsys, base, "--metrik", "avg")
    assert "--seed x: give a number" in refusal(capsys, base, base, "--seed", "x")
    assert "no value follows --sets" in refusal(capsys, base, base, "--sets")
    other = write_evaluation(tmp_path / "other", {"b": responses("b", HARD)})
    assert "no set was evaluated in all runs" in refusal(capsys, base, other)
    both = write_run(tmp_path / "other", sets)
    said = refusal(capsys, base, both)
    assert "an evaluation of the command and 1 of training: name" in said
    step = str(tmp_path / "other" / "evaluation" / "step_000002")
    assert compared(capsys, base, step)["sets"][0]["arms"][1]["arm"] == "step_000002"
