"""Runs a script on several real ranks (torchrun, gloo) and returns what it printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def run_ranks(script: Path | str, world_size: int, *args: object, timeout: float = 120) -> str:
    """Runs `script` under torchrun with `world_size` ranks on this machine.

    Args:
        script: Path of the Python script every rank runs, or a module as "-m name".
        world_size: Number of ranks.
        args: Command-line arguments of the script.
        timeout: Seconds after which the ranks are killed and the test fails.

    Returns:
        Standard output of all ranks.

    Raises:
        AssertionError: A rank failed or the time ran out; the message holds the output.
    """
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(REPOSITORY), str(REPOSITORY / "tests"), environment.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "--nproc-per-node", str(world_size)]
    target = str(script).split() if str(script).startswith("-m ") else [str(script)]
    process = subprocess.Popen(
        command + target + [str(arg) for arg in args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=REPOSITORY,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            out, err = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        raise AssertionError(
            f"{script} on {world_size} ranks took more than {timeout} s\n{out}\n{err}"
        ) from None
    assert process.returncode == 0, (
        f"{script} on {world_size} ranks exited {process.returncode}\n{out}\n{err}"
    )
    return out
