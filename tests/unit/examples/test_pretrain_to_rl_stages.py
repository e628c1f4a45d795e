"""The table and the plot of the three-stage example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_resrl.observe.metrics import MetricsLogger
from megatron_resrl.user_files import run_file

SCRIPT = Path(__file__).resolve().parents[3] / "examples/pretrain_to_rl/stages.py"
pytest.importorskip("matplotlib", reason="the quickstart extra is not installed")
stages = run_file(SCRIPT, "example")


def evaluation(one: float, two: float, four: float) -> dict[str, float]:
    # Not in order, as 16 comes before 2 in an alphabet.
    values = {"pass@4": four, "pass@1": one, "pass@2": two, "avg@4": one}
    return {f"eval/heldout/{name}": value for name, value in values.items()}


def write_run(run: Path, last: float) -> None:
    with MetricsLogger(run, tensorboard=False, wandb_project=None) as logger:
        logger.log(0, evaluation(0.2, 0.3, 0.5))
        logger.log(1, {"reward/mean": 0.25})
        logger.log(2, {"reward/mean": 0.5} | evaluation(last, 0.7, 0.75))


def write_base(folder: Path) -> None:
    (folder / "pretrain_evaluation").mkdir()
    summary = {"metrics": evaluation(0.05, 0.1, 0.15)}
    (folder / "pretrain_evaluation/evaluation.json").write_text(json.dumps(summary))


def test_stages_are_rows_in_their_order(tmp_path, capsys):
    write_base(tmp_path)
    for name, last in (("resrl", 0.6), ("grpo", 0.55)):
        write_run(tmp_path / name, last)
    stages.main([str(tmp_path / "resrl"), str(tmp_path / "grpo")])
    table = [
        "| after | pass@1 | pass@2 | pass@4 |",
        "|---|---:|---:|---:|",
        "| pretraining | 5.0% | 10.0% | 15.0% |",
        "| fine-tuning | 20.0% | 30.0% | 50.0% |",
        "| reinforcement learning: resrl | 60.0% | 70.0% | 75.0% |",
        "| reinforcement learning: grpo | 55.0% | 70.0% | 75.0% |",
    ]
    assert capsys.readouterr().out.splitlines()[:6] == table
    assert (tmp_path / "stages.md").read_text().splitlines()[2:] == table
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")


def test_stages_name_what_has_not_been_evaluated(tmp_path):
    write_run(tmp_path / "resrl", 0.6)
    with pytest.raises(SystemExit, match=r"pretrain_evaluation/evaluation\.json does not exist"):
        stages.main([str(tmp_path / "resrl")])
    write_base(tmp_path)
    (tmp_path / "resrl/metrics.jsonl").write_text('{"step": 0, "eval/heldout/avg@4": 0.5}\n')
    with pytest.raises(SystemExit, match="0 training steps and 1 evaluations"):
        stages.main([str(tmp_path / "resrl")])
