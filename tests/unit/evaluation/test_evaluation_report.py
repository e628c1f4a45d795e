"""What an evaluation prints and draws, from graded responses of two sets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_resrl.config.schema import RewardConfig
from megatron_resrl.data.prompts import Prompt
from megatron_resrl.data.question_files import QuestionFile
from megatron_resrl.data.records import PromptRecord
from megatron_resrl.evaluation.plot import Points, draw_points, new_figure, plot_evaluation
from megatron_resrl.evaluation.report import evaluation_lines, shown_metrics
from megatron_resrl.evaluation.results import SetResult
from megatron_resrl.evaluation.sets import EvaluationSet, SetSettings
from megatron_resrl.observe.metric_names import find_metric
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.rollout.engine import Response


def result(
    name: str, scores: list[list[float]], ks: tuple[int, ...], function: str, cut: int = 0
) -> SetResult:
    """A set whose responses are 7 where they are right and 8 elsewhere; the first ones cut off."""
    settings = SetSettings(
        file=QuestionFile(f"{name}.jsonl", name),
        reward=RewardConfig(function=function),
        samples_per_prompt=len(scores[0]),
        temperature=1.0,
        top_p=1.0,
        pass_at=ks,
        max_response_length=8,
        max_prompts=None,
    )
    prompts = [
        Prompt(PromptRecord(n, [{"role": "user", "content": "?"}], "7", name, {}), (3,))
        for n in range(len(scores))
    ]
    samples = []
    for group, each in enumerate(scores):
        for score in each:
            reason = "length" if len(samples) < cut else "stop"
            text = "7" if score else "8"
            parts = {"integer": score, "length": 0.5} if name == "mixed" else {}
            samples.append(
                Sample(
                    group=group,
                    prompt=prompts[group],
                    response=Response((7,) * 4, (-1.0,) * 4, reason),
                    text=text,
                    score=score,
                    reward=score,
                    timed_out=False,
                    parts=parts,
                )
            )
    return SetResult(EvaluationSet(settings, prompts), samples)


@pytest.fixture
def results() -> list[SetResult]:
    first = result("mixed", [[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]], (1, 2), "integer", cut=3)
    return [first, result("one", [[1], [0]], (1,), "code")]


def test_evaluation_lines_end_with_a_row_for_each_set(results: list[SetResult]) -> None:
    intervals = {"mixed": {"avg@4": (0.25, 0.9375)}, "one": {}}
    lines = list(evaluation_lines(results, intervals))
    assert "eval/mixed/avg@4: 0.5833  [0.2500, 0.9375]" in lines
    assert "eval/one/pass@1: 0.5000" in lines
    empty = lines.index("")
    heads, mixed, one = (re.split(r" {2,}", line.strip()) for line in lines[empty + 1 :])
    shares = ["pass@1", "pass@2", "pass^2", "cons@2", "cons@4"]
    assert shown_metrics(results) == shares
    assert heads == [
        *("set", "questions", "samples", "avg", "interval"),
        *(*shares, "truncated", "tokens"),
    ]
    # pass@2: 1 - 1/6, 1 - 3/6 and 1; pass^2: 1/6, 0 and 1; of ties between 7 and 8 both count half.
    votes_of_2 = (0.5 + 0.25 + 1) / 3
    votes_of_4 = (0.5 + 0 + 1) / 3
    expected = [7 / 12, (5 / 6 + 1 / 2 + 1) / 3, (1 / 6 + 0 + 1) / 3, votes_of_2, votes_of_4]
    assert mixed == [
        *("mixed", "3", "4", "0.5833", "[0.2500, 0.9375]"),
        *(f"{value:.4f}" for value in expected),
        *("0.250", "4"),
    ]
    assert one == ["one", "2", "1", "0.5000", "0.5000", "0.000", "4"]


def test_metrics_of_a_set_have_the_mean_of_each_function(results: list[SetResult]) -> None:
    metrics = results[0].metrics()
    assert metrics["reward/integer/mean"] == pytest.approx(7 / 12)
    assert metrics["reward/length/mean"] == 0.5
    assert not any(name.startswith("reward/") for name in results[1].metrics())
    known = find_metric("eval/mixed/reward/integer/mean")
    assert known is not None
    assert known.unit == "score"


def test_plot_evaluation_writes_a_picture(results: list[SetResult], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    intervals = {each.questions.name: each.intervals(3) for each in results}
    plot_evaluation(results, intervals, str(tmp_path / "a$b$.png"))
    assert (tmp_path / "a$b$.png").read_bytes().startswith(b"\x89PNG")


def test_draw_points_places_values_and_their_intervals() -> None:
    pytest.importorskip("matplotlib")
    _, (panel,) = new_figure(1, 2)
    points = Points("avg", {"b": 0.5, "a$x$": 0.25}, {"b": (0.25, 1.0)})
    draw_points(panel, ["a$x$", "b", "c"], points, shift=-0.25)
    (dots, _, (bars,)) = panel.containers[0]
    assert dots.get_xydata().tolist() == [[0.25, -0.25], [0.5, 0.75]]
    ends = [segment[:, 0].tolist() for segment in bars.get_segments()]
    assert ends == [[0.25, 0.25], [0.25, 1.0]]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["a$x$", "b", "c"]
