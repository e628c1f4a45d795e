"""The quickstart's report, on a metrics file written by the trainer's own logger."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from megatron_resrl.observe.metrics import MetricsLogger

SCRIPT = Path(__file__).resolve().parents[3] / "examples/quickstart/report.py"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    pytest.importorskip("matplotlib", reason="the quickstart extra is not installed")
    spec = importlib.util.spec_from_file_location("quickstart_report", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """Four steps: evaluated before, in the middle and after; one value is not finite."""
    with MetricsLogger(tmp_path, tensorboard=False, wandb_project=None) as logger:
        logger.log(0, evaluation(0.125, 0.5, 14.5))
        for step in range(1, 5):
            metrics = {
                "reward/mean": 0.2 * step,
                "grad_norm": float("nan") if step == 2 else 1.0,
                "time/rollout": 3.0,
                "time/update": 0.5 + step,
                "time/other": 0.0,
                "time/step": 3.5 + step,
            }
            if step % 2 == 0:
                metrics |= evaluation(0.1875 * step, 0.25 * step, 16 - 3 * step)
            logger.log(step, metrics)
    return tmp_path


def evaluation(average: float, any_right: float, length: float) -> dict[str, float]:
    return {
        "eval/heldout/avg@8": average,
        "eval/heldout/pass@8": any_right,
        "eval/heldout/response_length": length,
    }


def test_report_compares_first_and_last_evaluation(report: ModuleType, run_directory: Path) -> None:
    table = report.before_and_after(report.read_metrics(run_directory / "metrics.jsonl"))
    assert "| heldout avg@8 | 12.5% | 75.0% | +62.5 points |" in table
    assert "| heldout pass@8 | 50.0% | 100.0% | +50.0 points |" in table
    assert "| heldout response length | 14.5 | 4.0 | -10.5 |" in table


def test_report_time_per_step_averages_and_adds_up(report: ModuleType, run_directory: Path) -> None:
    lines = report.time_per_step(report.read_metrics(run_directory / "metrics.jsonl")).splitlines()
    assert lines[0].startswith("| one of 4 training steps")
    assert lines[2:] == [
        "| rollout | 3.00 | 50.0% |",
        "| update | 3.00 | 50.0% |",
        "| other | 0.00 | 0.0% |",
        "| **step** | **6.00** | |",
    ]


def test_report_is_printed_and_written_with_a_picture(
    report: ModuleType, run_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main([str(run_directory)])
    assert "+62.5 points" in capsys.readouterr().out
    assert "![" in (run_directory / "report.md").read_text()
    assert (run_directory / "report.png").read_bytes().startswith(b"\x89PNG")


def test_report_refuses_a_run_that_has_not_trained(report: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"metrics\.jsonl does not exist"):
        report.read_metrics(tmp_path / "metrics.jsonl")
    with MetricsLogger(tmp_path, tensorboard=False, wandb_project=None) as logger:
        logger.log(0, evaluation(0.1, 0.5, 14.0))
    with pytest.raises(SystemExit, match="0 training steps and 1 evaluations"):
        report.read_metrics(tmp_path / "metrics.jsonl")


def test_report_compares_runs_by_the_settings_that_differ(
    report: ModuleType,
    run_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path_factory.mktemp("runs") / "grpo"
    with MetricsLogger(other, tensorboard=False, wandb_project=None) as logger:
        for step in range(1, 21):
            logger.log(step, {"reward/mean": step / 20, "time/step": 2.0})
    recipe = "output_dir: {}\nsteps: 4\nalgorithm:\n  name: {}\n  options: {}\n"
    (other / "recipe.yaml").write_text(recipe.format("a", "grpo", "{eps: 0.5}"))
    (run_directory / "recipe.yaml").write_text(recipe.format("b", "resrl", "{}"))
    report.main([str(other), str(run_directory)])
    printed = capsys.readouterr().out
    name = run_directory.name
    assert "| run | steps | reward, first tenth | last tenth | seconds per step |" in printed
    assert "| grpo | 20 | 0.075 | 0.975 | 2.00 | - |" in printed
    assert f"| {name} | 4 | 0.200 | 0.800 | 6.00 | 12.5% to 75.0% |" in printed
    assert "| algorithm.name | grpo | resrl |" in printed
    assert "| algorithm.options | {'eps': 0.5} | {} |" in printed
    assert "output_dir" not in printed
    assert "| steps |" not in printed.partition("| setting |")[2]
    assert printed.partition("written:")[0].strip() in (other / "comparison.md").read_text()
    assert (other / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_report_does_not_take_help_for_a_directory(
    report: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main(["--help"])
    assert "outputs/grpo outputs/resrl" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"RUN \[RUN \.\.\.\]"):
        report.main([])
