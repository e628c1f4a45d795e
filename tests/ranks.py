"""Runs a script on several real ranks (gloo) and returns what it printed."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

REPOSITORY = Path(__file__).resolve().parents[1]
PRELOADED = ("megatron_resrl.rollout.engines.megatron", "megatron_resrl.training.rl_step")
"""Imported once per test process, which takes longer than most ranks compute."""


def run_ranks(script: Path | str, world_size: int, *args: object, timeout: float = 600) -> str:
    """Runs `script` on `world_size` ranks of this machine.

    Each rank is a process of its own with the environment that torchrun gives it, forked from a
    server that has imported the libraries and done nothing else.

    Args:
        script: Path of the Python script every rank runs, or a module as "-m name".
        world_size: Number of ranks.
        args: Command-line arguments of the script.
        timeout: Seconds after which the ranks are killed and the test fails.

    Returns:
        Standard output of all ranks, one rank after the other.

    Raises:
        AssertionError: A rank failed or the time ran out; the message holds the output.
    """
    return run_ranks_with_log(script, world_size, *args, timeout=timeout)[0]


def run_ranks_with_log(
    script: Path | str, world_size: int, *args: object, timeout: float = 600
) -> tuple[str, str]:
    """Like `run_ranks`; returns standard output and standard error."""
    codes, out, err = ended_ranks(script, world_size, *args, timeout=timeout)
    assert not any(codes), f"{script} on {world_size} ranks exited {codes}\n{out}\n{err}"
    return out, err


def ended_ranks(
    script: Path | str,
    world_size: int,
    *args: object,
    timeout: float = 600,
    patient: bool = False,
    environment: Mapping[str, str] | None = None,
) -> tuple[list[int], str, str]:
    """Like `run_ranks`, however the ranks end.

    Args:
        patient: Let all ranks end by themselves also when one has failed.
        environment: Further variables.

    Returns:
        Exit statuses by rank, standard output and standard error.

    Raises:
        AssertionError: The time ran out.
    """
    # As torchrun does it: the ranks meet at a store that listens before they start.
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        **(environment or {}),
    }
    context = _server()
    with tempfile.TemporaryDirectory() as directory:
        ranks = [
            context.Process(
                target=_rank,
                args=(
                    str(script),
                    [str(arg) for arg in args],
                    shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    [f"{directory}/out{rank}", f"{directory}/err{rank}"],
                ),
            )
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        in_time = _wait(ranks, timeout, patient=patient)
        out, err = (_written(Path(directory), name, world_size) for name in ("out", "err"))
    assert in_time, f"{script} on {world_size} ranks took more than {timeout} s\n{out}\n{err}"
    return [process.exitcode for process in ranks], out, err


def run_command(
    *arguments: object, timeout: float = 600, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m megatron_resrl ARGUMENTS` as one rank, without the time that imports take.

    Args:
        environment: Further variables.

    Raises:
        AssertionError: The time ran out.
    """
    (code,), out, err = ended_ranks(
        "-m megatron_resrl", 1, *arguments, timeout=timeout, environment=environment
    )
    return subprocess.CompletedProcess(arguments, code, out, err)


def run_torchrun(target: str, world_size: int, *args: object, timeout: float = 900) -> str:
    """`run_ranks` by way of torchrun, as users start a run: much slower to start.

    Raises:
        AssertionError: A rank failed; the message holds the output.
        subprocess.TimeoutExpired: The time ran out.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(world_size), *target.split(), *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _server() -> Any:
    """The server that ranks are forked from; the first process that is asked of it starts it."""
    context = multiprocessing.get_context("forkserver")
    # Libraries that look for CUDA devices when imported would leave forks unable to use them.
    context.set_forkserver_preload([] if torch.cuda.is_available() else list(PRELOADED))
    return context


def _rank(script: str, args: list[str], environment: dict[str, str], files: list[str]) -> None:
    """What one forked process does: become a rank and run the script."""
    sys.stdout.flush()
    for file, descriptor in zip(files, (1, 2), strict=True):
        # A file per rank: lines of two ranks in one file run into each other. Appended to, because
        # processes that the rank starts share it.
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.update(environment, OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    os.chdir(REPOSITORY)
    sys.argv = [script, *args]
    if folders := environment.get("PYTHONPATH"):
        sys.path[:0] = folders.split(os.pathsep)
    if script.startswith("-m "):
        runpy.run_module(script.removeprefix("-m "), run_name="__main__", alter_sys=True)
    else:
        # As the interpreter does: the script's folder comes first.
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")


def _written(directory: Path, name: str, world_size: int) -> str:
    """What the ranks have written to their files of this name, one rank after the other."""
    files = [directory / f"{name}{rank}" for rank in range(world_size)]
    lines = [
        line
        for file in files
        if file.exists()
        for line in file.read_text().splitlines(keepends=True)
        if not line.startswith("[Gloo] Rank ")  # torch 2.8 says who is connected.
    ]
    return "".join(lines)


def _wait(ranks: list[BaseProcess], timeout: float, *, patient: bool) -> bool:
    """Until all have ended, one has failed, or the time is out; ends those that are left.

    Args:
        patient: Do not mind one that has failed.

    Returns:
        False if the time ran out.
    """
    deadline = time.monotonic() + timeout
    while any(process.is_alive() for process in ranks) and time.monotonic() < deadline:
        if not patient and any(process.exitcode for process in ranks):
            break
        time.sleep(0.02)
    in_time = time.monotonic() < deadline
    for process in ranks:
        process.terminate()
    for process in ranks:
        process.join(20)
        process.kill()
        process.join()
    return in_time
