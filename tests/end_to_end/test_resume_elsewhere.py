"""A run that goes on under another layout follows the same curve."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ranks import run_ranks
from tiny_task import read_metrics, write_task

STEPS = 4
LAYOUTS = {
    "one": (1, []),
    "TP2+SP": (2, ["--parallel.tensor_model_parallel_size=2", "--parallel.sequence_parallel=true"]),
    "PP2": (2, ["--parallel.pipeline_model_parallel_size=2"]),
    "DP2": (2, []),
}
COMPARED = ("loss", "grad_norm", "entropy", "reward/mean", "resrl/mean_weight")


def _train(directory: Path, layout: str, steps: int) -> list[dict]:
    ranks, arguments = LAYOUTS[layout]
    recipe = write_task(
        directory,
        # Adam would blow fp32 noise in tiny gradients up to whole steps.
        optimizer__adam_eps=1e-3,
        # The schedule of a shorter run would be another one.
        optimizer__lr_decay_steps=STEPS,
        evaluation__files=[],
        checkpoint__save_every=2,
    )
    run_ranks(
        "-m megatron_resrl", ranks, "train", recipe, f"--steps={steps}", *arguments, timeout=600
    )
    return read_metrics(directory / "run")


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one rank, stopped after two of four steps."""
    directory = tmp_path_factory.mktemp("halfway")
    _train(directory, "one", 2)
    return directory


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Metrics of a run of one rank and four steps."""
    return _train(tmp_path_factory.mktemp("straight"), "one", STEPS)


@pytest.mark.parametrize(
    "layout",
    ["TP2+SP", pytest.param("PP2", marks=pytest.mark.slow), "DP2"],
)
def test_resume_elsewhere_follows_the_curve_of_one_rank(layout, halfway, straight, tmp_path):
    shutil.copytree(halfway / "run" / "checkpoints", tmp_path / "run" / "checkpoints")
    shutil.copy(halfway / "run" / "metrics.jsonl", tmp_path / "run")
    metrics = _train(tmp_path, layout, STEPS)
    assert [line["step"] for line in metrics] == [line["step"] for line in straight]
    for line, expected in zip(metrics, straight, strict=True):
        for name in COMPARED if line["step"] else ():
            # The claim: 1e-5. Sums in fp32 in another order, and two steps of Adam after them.
            assert line[name] == pytest.approx(expected[name], abs=1e-5, rel=1e-5), name
