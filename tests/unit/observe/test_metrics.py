"""Metrics on disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_resrl.errors import InputError
from megatron_resrl.observe.metrics import MetricsLogger


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def logger(directory: Path, **options: object) -> MetricsLogger:
    return MetricsLogger(directory, **{"tensorboard": False, "wandb_project": None} | options)


def run(directory: Path, first: int, last: int, **options: object) -> None:
    with logger(directory, **options) as metrics:
        for step in range(first, last + 1):
            metrics.log(step, {"reward": step / 10})
            metrics.log_samples(step, [{"response": f"é{step}"}, {"response": "b"}])


def test_metrics_write_one_json_line_per_step(tmp_path: Path) -> None:
    run(tmp_path / "new", 1, 2)
    records = lines(tmp_path / "new" / "metrics.jsonl")
    assert [(r["step"], r["reward"]) for r in records] == [(1, 0.1), (2, 0.2)]
    assert records[0]["time"] > 1.6e9
    samples = lines(tmp_path / "new" / "samples.jsonl")
    assert samples[2] == {"step": 2, "response": "é2"}


def test_metrics_are_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    metrics = logger(tmp_path)
    metrics.log(1, {"reward": 0.5})
    assert len(lines(tmp_path / "metrics.jsonl")) == 1
    metrics.close()


def test_metrics_write_non_finite_values_as_valid_json(tmp_path: Path) -> None:
    with logger(tmp_path) as metrics:
        metrics.log(1, {"grad_norm": float("nan"), "loss": float("inf"), "reward": 1})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text) | {"time": 0} == {
        "step": 1,
        "time": 0,
        "grad_norm": None,
        "loss": None,
        "reward": 1.0,
    }


def test_metrics_refuse_a_step_logged_twice(tmp_path: Path) -> None:
    with logger(tmp_path) as metrics:
        metrics.log(3, {"reward": 0.5})
        with pytest.raises(ValueError, match="step 3 come after those of step 3"):
            metrics.log(3, {"accuracy": 0.5})


def test_metrics_have_one_line_per_step_after_a_resume(tmp_path: Path) -> None:
    run(tmp_path, 1, 4)
    run(tmp_path, 3, 5, resume_step=2)
    assert [r["step"] for r in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert [r["step"] for r in lines(tmp_path / "samples.jsonl")] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert not list(tmp_path.glob("*.new"))


def test_metrics_refuse_steps_from_before_a_resume(tmp_path: Path) -> None:
    run(tmp_path, 1, 4)
    with logger(tmp_path, resume_step=2) as metrics, pytest.raises(ValueError, match="step 2"):
        metrics.log(2, {"reward": 0.5})


def test_metrics_drop_a_line_torn_by_a_crash(tmp_path: Path) -> None:
    run(tmp_path, 1, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    run(tmp_path, 3, 3, resume_step=2)
    assert [r["step"] for r in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


LINE_ENDS = "".join(c for c in map(chr, range(0x110000)) if len(f"a{c}a".splitlines()) > 1)
TEXT = f"{LINE_ENDS}\x00\ufeff\ufffe\U0001f600 \ud800 \udfff"


def test_metrics_read_back_and_resume_over_any_text(tmp_path: Path) -> None:
    with logger(tmp_path) as metrics:
        metrics.log(1, {f"eval/a{TEXT}/avg@4": 0.5})
        metrics.log_samples(1, [{"response": TEXT}, {"response": "b"}])
    run(tmp_path, 2, 2, resume_step=1)
    assert lines(tmp_path / "metrics.jsonl")[0][f"eval/a{TEXT}/avg@4"] == 0.5
    samples = lines(tmp_path / "samples.jsonl")
    assert [sample["response"] for sample in samples] == [TEXT, "b", "é2", "b"]
    # For programs that want UTF-8 and one record per line.
    assert (tmp_path / "samples.jsonl").read_bytes().count(b"\n") == 4


def test_metrics_drop_a_character_torn_by_a_crash(tmp_path: Path) -> None:
    run(tmp_path, 1, 1)
    with (tmp_path / "samples.jsonl").open("ab") as file:
        file.write('{"step": 2, "response": "é'.encode()[:-1])
    run(tmp_path, 2, 2, resume_step=1)
    assert [r["step"] for r in lines(tmp_path / "samples.jsonl")] == [1, 1, 2, 2]


def test_metrics_name_file_and_line_of_a_foreign_line(tmp_path: Path) -> None:
    run(tmp_path, 1, 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("hello\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2 is not a JSON object"):
        logger(tmp_path, resume_step=2)


def test_metrics_of_an_earlier_run_are_set_aside(tmp_path: Path) -> None:
    run(tmp_path, 1, 2)
    run(tmp_path, 1, 1)
    run(tmp_path, 1, 3)
    assert [r["step"] for r in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert [r["step"] for r in lines(tmp_path / "metrics.1.jsonl")] == [1, 2]
    assert [r["step"] for r in lines(tmp_path / "metrics.2.jsonl")] == [1]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    run(tmp_path, 1, 4, tensorboard=True)
    run(tmp_path, 3, 5, tensorboard=True, resume_step=2)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("reward")]
    # TensorBoard stores float32: 1e-6 is above its rounding of values below one.
    assert scalars == [(s, pytest.approx(s / 10, abs=1e-6)) for s in range(1, 6)]


def test_wandb_sink_names_the_extra_of_a_missing_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # As if it were not installed.
    with pytest.raises(ImportError, match=r"'quickrun'.*pip install megatron-resrl\[wandb\]"):
        logger(tmp_path, wandb_project="quickrun")


def test_wandb_sink_continues_the_same_run_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(tmp_path, 1, 3, wandb_project="p")
    first = (tmp_path / "wandb_run_id.txt").read_text()
    run(tmp_path, 3, 4, wandb_project="p", resume_step=2)
    assert (tmp_path / "wandb_run_id.txt").read_text() == first
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*{first.strip()}*"))) == 2
