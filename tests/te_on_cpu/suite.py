"""Runs programs on Transformer Engine's layers, on a CPU, in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
FOLDER = REPOSITORY / ".te"
"""Of Transformer Engine's Python files."""

needs_engine = pytest.mark.skipif(
    not (FOLDER / "transformer_engine").is_dir(),
    reason="Transformer Engine's Python is not in .te; tools/install.sh te-on-cpu installs it",
)


def run_on_engine_layers(*arguments: object, timeout: float, folder: Path = FOLDER) -> str:
    """Runs Python with these arguments; all that it starts uses the same layers.

    Args:
        arguments: Of the interpreter: a script and its own, or "-m" and a module.
        timeout: In seconds.
        folder: Of Transformer Engine's Python.

    Returns:
        Standard output.

    Raises:
        AssertionError: It failed; the message holds the output.
        subprocess.TimeoutExpired: The time ran out.
    """
    path = [str(HERE / "site"), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "TE_ON_CPU": str(folder),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{arguments} exited {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def passes_on_engine_layers(*tests: str, timeout: float = 2400) -> int:
    """Runs tests of this repository (paths, ids, options of pytest); all must pass.

    Returns:
        How many passed.
    """
    # A run within a run: its workers and its cache are its own.
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    output = run_on_engine_layers("-m", "pytest", *options, *tests, timeout=timeout)
    return int(re.search(r"(\d+) passed", output).group(1))
