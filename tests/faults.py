"""Starts runs that break at a chosen point (`faulty_train.py`) and reports how they ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ranks import REPOSITORY, ended_ranks
from safetensors.torch import load_file
from tiny_task import read_metrics

RATES = ("tokens_per_second", "model_tflops_per_gpu", "mfu")
"""Metrics of pretraining that follow from times."""
DRIVER = REPOSITORY / "tests" / "faulty_train.py"


@dataclass(frozen=True)
class Fault:
    """What happens to which rank, and when."""

    action: str
    """One of `faulty_train.ACTIONS`."""
    at: str
    """The point, see `faulty_train.py`."""
    step: int | None = 3
    """The training step; None: any, the point says it."""
    rank: int = 1
    """The rank."""

    def arguments(self) -> list[str]:
        """Of the driver."""
        step = [] if self.step is None else ["--at_step", str(self.step)]
        return ["--action", self.action, "--at", self.at, *step, "--on_rank", str(self.rank)]


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    """Exit status of the launcher, or of the process without one."""
    text: str
    """Both outputs of all ranks."""

    def first_rank_code(self) -> int | None:
        """Status of the rank that torchrun saw failing first; None if it saw none."""
        found = re.search(r"Root Cause.*?exitcode\s*: (-?\d+)", self.text, re.DOTALL)
        return int(found[1]) if found else None


def run_task(
    recipe: Path,
    fault: Fault | None = None,
    *settings: str,
    ranks: int = 2,
    timeout: float = 600,
    stage: str = "train",
) -> Ended:
    """Runs a training to its end, whichever that is.

    Args:
        recipe: From `tiny_task.write_task`.
        fault: What goes wrong; None: nothing.
        settings: Command-line settings.
        ranks: 1: without torchrun, and forked, so that imports take no time.
        timeout: Seconds after which all is killed and the test fails.
        stage: The command, whose recipe it is.

    Raises:
        AssertionError: Time ran out; the message holds the output.
    """
    if ranks == 1:
        arguments = _driver_arguments(fault, stage)
        (code,), out, err = ended_ranks(DRIVER, 1, *arguments, recipe, *settings, timeout=timeout)
        return Ended(code, out + err)
    process = start_task(recipe, fault, *settings, ranks=ranks, stage=stage)
    try:
        text, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # torchrun's ranks have sessions of their own.
        try:
            text, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        raise AssertionError(f"the run did not end within {timeout} s\n{text}") from None
    return Ended(process.returncode, text)


def start_task(
    recipe: Path, fault: Fault | None, *settings: str, ranks: int = 2, stage: str = "train"
) -> subprocess.Popen[str]:
    """Starts a training in a session of its own; its outputs come through one pipe."""
    path = [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    launcher: Sequence[str] = [sys.executable]
    if ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d"]
        launcher += ["--rdzv-endpoint", "localhost:0", "--nproc-per-node", str(ranks)]
    arguments = _driver_arguments(fault, stage)
    return subprocess.Popen(
        [*launcher, str(DRIVER), *arguments, str(recipe), *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=REPOSITORY,
        env=dict(
            os.environ, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1", PYTHONPATH=os.pathsep.join(path)
        ),
    )


def _driver_arguments(fault: Fault | None, stage: str) -> list[str]:
    return ["--stage", stage, *(fault.arguments() if fault else ())]


def assert_same_run(run: Path, undisturbed: Path) -> None:
    """Metrics and exported weights are equal bit by bit."""
    measured, expected_lines = (
        [{name: each for name, each in line.items() if name not in RATES} for line in lines]
        for lines in (read_metrics(run), read_metrics(undisturbed))
    )
    assert measured == expected_lines
    weights = load_file(run / "hf" / "model.safetensors")
    expected = load_file(undisturbed / "hf" / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.equal(weights[name]), name
