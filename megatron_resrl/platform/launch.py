"""The launcher's environment variables: rank, number of ranks, and where the ranks meet.

torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) are used where they
are set, else the variables of Open MPI, MPICH and Slurm, so that `mpirun` and `srun` start ranks,
too. This module does not need torch.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from megatron_resrl.errors import InputError

DEFAULT_PORT = 29500
_PORTS = range(12000, 32000)
"""Of jobs; below the ports that Linux gives to outgoing connections."""

_RESOLVE_S = 10.0
"""Seconds in which the name server must know a host; it may be busy for a moment."""


class _Launcher(NamedTuple):
    """Names of one launcher's variables."""

    name: str
    rank: tuple[str, ...]
    size: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...]


# mpirun within a Slurm job starts its daemons with srun, whose variables its ranks inherit.
_LAUNCHERS = (
    _Launcher(
        "mpirun",
        ("OMPI_COMM_WORLD_RANK",),
        ("OMPI_COMM_WORLD_SIZE",),
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Launcher(
        "mpiexec",
        ("PMI_RANK",),
        ("PMI_SIZE",),
        ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID"),
        ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
    ),
    _Launcher(
        "srun",
        ("SLURM_PROCID",),
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"),
        ("SLURM_LOCALID",),
        (),
    ),
)


def rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables for this process, as its launcher names them.

    Args:
        environment: Of the process.

    Returns:
        Variables to add to the environment: none if RANK is set, or if the process runs alone.

    Raises:
        InputError: RANK, WORLD_SIZE or LOCAL_RANK is missing beside the others, not a number, or
            out of range; the host where ranks meet is unknown.
    """
    if "RANK" in environment:
        _require_ranks(environment)
        return {}
    launcher = next((each for each in _LAUNCHERS if _started_by(each, environment)), None)
    if launcher is None:
        alone = environment.get("WORLD_SIZE", "1")
        if alone != "1":
            raise InputError(
                f"WORLD_SIZE = {alone!r}: RANK is not set beside it; start the ranks with "
                "torchrun, or set both"
            )
        return {}
    rank, size = _first(launcher.rank, environment), _first(launcher.size, environment)
    variables: dict[str, Any] = {"RANK": rank, "WORLD_SIZE": size}
    if local := _first(launcher.local_rank, environment):
        variables["LOCAL_RANK"] = local
    local_size = _first(launcher.local_size, environment)
    if local_size is None and environment.get("SLURM_NNODES") == "1":
        local_size = size
    if local_size:
        variables["LOCAL_WORLD_SIZE"] = local_size
    variables |= {name: environment[name] for name in variables if name in environment}
    _require_ranks(variables)
    if "MASTER_ADDR" not in environment:
        variables["MASTER_ADDR"] = _meeting_host(launcher.name, environment, size, local_size)
    if "MASTER_PORT" not in environment:
        variables["MASTER_PORT"] = str(_port(environment))
    return variables


def require_meeting_place(environment: Mapping[str, str]) -> None:
    """Checks that the host where the ranks meet is known.

    Args:
        environment: With torchrun's variables.

    Raises:
        InputError: MASTER_ADDR or MASTER_PORT is missing, not a port, or not a known host.
    """
    if "RANK" not in environment:
        return
    for name, example in (("MASTER_ADDR", "the host of rank 0"), ("MASTER_PORT", "e.g. 29500")):
        if not environment.get(name):
            raise InputError(
                f"{name} is not set, and RANK is; set it to where the ranks meet ({example}), or "
                "start the ranks with torchrun"
            )
    host, port = environment["MASTER_ADDR"], environment["MASTER_PORT"]
    if not port.isdecimal() or not 0 <= int(port) < 2**16:
        raise InputError(f"MASTER_PORT = {port!r}: not a port; give a number below 65536")
    until = time.monotonic() + _RESOLVE_S
    while True:
        try:
            socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
            return
        except OSError as error:
            if time.monotonic() > until or getattr(error, "errno", None) == socket.EAI_NONAME:
                raise InputError(
                    f"MASTER_ADDR = {host!r}: there is no such host ({error.strerror}); give the "
                    "name or address of the host of rank 0"
                ) from error
        time.sleep(1)


def device_of(environment: Mapping[str, str], visible: int) -> int:
    """The GPU of this rank.

    Args:
        environment: With torchrun's variables.
        visible: GPUs that this process sees, at least one.

    Returns:
        LOCAL_RANK, or 0 where each rank sees its own GPU only. Without LOCAL_RANK, the rank modulo
        the GPUs, as ranks fill one host after the other.

    Raises:
        InputError: More ranks on this host than GPUs.
    """
    local = environment.get("LOCAL_RANK")
    if local is None:
        return int(environment.get("RANK", "0")) % visible
    number = int(local)
    # torchrun shows all ranks of a host the same GPUs; srun may give each rank one of its own.
    shared = visible > 1 or "TORCHELASTIC_RUN_ID" in environment
    if number >= visible and shared:
        raise InputError(
            f"LOCAL_RANK = {number}: {visible} GPU{'s are' if visible > 1 else ' is'} visible on "
            "this host; start as many ranks on a host as it has GPUs"
        )
    return number % visible


def expand_hosts(text: str) -> list[str]:
    """The hosts of a Slurm host list, in order: `n[01-03,7],gpu1` has n01, n02, n03, n7, gpu1.

    Raises:
        ValueError: The text is not a host list.
    """
    hosts: list[str] = []
    for entry in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text):
        expanded = [""]
        for piece in re.findall(r"[^\[\]]+|\[[^\[\]]*\]", entry.strip()):
            parts = _numbers(piece[1:-1]) if piece.startswith("[") else [piece]
            expanded = [before + part for before in expanded for part in parts]
        hosts += expanded
    if not hosts or text.count("[") != text.count("]"):
        raise ValueError(f"{text!r} is not a list of hosts")
    return hosts


def _numbers(ranges: str) -> list[str]:
    """`01-03,7` -> 01, 02, 03, 7."""
    numbers: list[str] = []
    for part in ranges.split(","):
        first, dash, last = part.partition("-")
        if not dash:
            numbers.append(part)
        elif first.isdecimal() and last.isdecimal():
            numbers += [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
        else:
            raise ValueError(f"{part!r} is not a range of numbers")
    return numbers


def _first(names: tuple[str, ...], environment: Mapping[str, str]) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)


def _started_by(launcher: _Launcher, environment: Mapping[str, str]) -> bool:
    rank, size = _first(launcher.rank, environment), _first(launcher.size, environment)
    if rank is None or size is None or size == "1":
        return False
    return launcher.name != "srun" or _in_slurm_step(environment)


def _in_slurm_step(environment: Mapping[str, str]) -> bool:
    """Whether `srun` started this process.

    A batch script and the shell of salloc are one process each, although they have the job's number
    of tasks and SLURM_PROCID 0. They have no step.
    """
    step = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS")
    in_job = "SLURM_JOB_ID" in environment or "SLURM_JOBID" in environment
    return (
        any(environment.get(name) for name in step)
        or environment["SLURM_PROCID"] != "0"
        or not in_job
    )


def _require_ranks(variables: Mapping[str, str]) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        value = variables.get(name)
        if value is None and name == "WORLD_SIZE":
            raise InputError(
                f"RANK = {variables['RANK']!r}: WORLD_SIZE is not set beside it; start the ranks "
                "with torchrun, or set both"
            )
        if value is not None and not value.isdecimal():
            raise InputError(f"{name} = {value!r}: not a number; torchrun, srun and mpirun set it")
    rank, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    if rank >= size:
        raise InputError(
            f"RANK = {rank}: WORLD_SIZE is {size}, so that ranks are 0 to {size - 1}"
            if size
            else "WORLD_SIZE = 0: a job has at least 1 rank"
        )


def _meeting_host(
    launcher: str, environment: Mapping[str, str], size: str | None, local_size: str | None
) -> str:
    """The host of rank 0."""
    if size == local_size:
        return "127.0.0.1"
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if text := environment.get(name):
            try:
                return expand_hosts(text)[0]
            except ValueError as error:
                raise InputError(f"{name} = {text!r}: {error}; set MASTER_ADDR") from error
    if launcher == "srun" and environment.get("SLURM_NNODES", "1") == "1":
        return "127.0.0.1"
    example = " (mpirun -x MASTER_ADDR=HOST)" if launcher == "mpirun" else ""
    raise InputError(
        f"MASTER_ADDR is not set, and {launcher} started {size} ranks; set it to the host of rank 0"
        f"{example}"
    )


def _port(environment: Mapping[str, str]) -> int:
    """A port that all ranks of this job choose, and other jobs on the same hosts do not."""
    job = environment.get("SLURM_JOB_ID") or environment.get("SLURM_JOBID") or ""
    step = environment.get("SLURM_STEP_ID") or environment.get("SLURM_STEPID") or "0"
    if not (job.isdecimal() and step.isdecimal()):
        return DEFAULT_PORT
    return _PORTS[(int(job) + 97 * int(step)) % len(_PORTS)]
