"""Runs programs on another version of megatron-core than the installed one, in their processes."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
VERSION = "0.19.2"
"""The newest that is supported."""
FOLDER = REPOSITORY / ".megatron-core" / VERSION

needs_other_version = pytest.mark.skipif(
    not (FOLDER / "installed").is_file() or metadata.version("megatron-core") == VERSION,
    reason=f"compares megatron-core {VERSION} (tools/install.sh megatron-core=={VERSION}) with "
    "another version",
)


def run_on(folder: Path | None, *arguments: object, timeout: float = 600) -> str:
    """Runs Python with these arguments; all that it starts uses the same megatron-core.

    Args:
        folder: Of that megatron-core; None: that of this environment.
        arguments: Of the interpreter: a script and its own.
        timeout: In seconds.

    Returns:
        Standard output.

    Raises:
        AssertionError: It failed; the message holds the output.
        subprocess.TimeoutExpired: The time ran out.
    """
    path = [str(folder or ""), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{arguments} exited {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
