"""What Slurm says of its partitions, and what of a job does not fit to them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_resrl.config.problems import Problem
from megatron_resrl.errors import InputError, closest
from megatron_resrl.launch.options import LaunchOptions
from megatron_resrl.launch.slurm_time import seconds_of

_GPUS = re.compile(r"gpu:(?:([^:,()]+):)?(\d+)")
_ANSWER_S = 30.0


@dataclass(frozen=True)
class NodeKind:
    """Nodes of one partition that are alike."""

    partition: str
    is_default: bool
    time_limit: str
    """As Slurm writes it; `infinite`: none."""
    nodes: int
    gpus: int
    """Of each node."""
    gpu_types: tuple[str, ...]
    """As Slurm names them; empty: it has no names for them."""


def ask_cluster() -> list[NodeKind]:
    """The partitions of this cluster.

    Raises:
        InputError: There is no Slurm here, or it does not answer.
    """
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        raise InputError(
            "--submit: there is no Slurm on this machine (sbatch and sinfo are not in PATH); run "
            "it on a login node, or without --submit, and take the printed script there"
        )
    command = ["sinfo", "--noheader", "--format=%P|%l|%D|%G"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_S, check=True
        )
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise InputError(f"--submit: sinfo fails ({said}); is Slurm's controller up?") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"--submit: sinfo has not answered for {_ANSWER_S:.0f} s; is Slurm's controller up?"
        ) from error
    return read_partitions(done.stdout)


def read_partitions(text: str) -> list[NodeKind]:
    """Reads `sinfo --noheader --format=%P|%l|%D|%G`."""
    found = []
    for line in text.splitlines():
        name, limit, nodes, resources = line.split("|", 3)
        gpus = _GPUS.findall(resources)
        found.append(
            NodeKind(
                partition=name.rstrip("*"),
                is_default=name.endswith("*"),
                time_limit=limit,
                nodes=int(nodes),
                gpus=sum(int(count) for _, count in gpus),
                gpu_types=tuple(sorted({kind for kind, _ in gpus if kind})),
            )
        )
    return found


def cluster_problems(options: LaunchOptions, kinds: Sequence[NodeKind]) -> Iterator[Problem]:
    """What of a job no node of its partition can give.

    Args:
        options: Of the job.
        kinds: Of the whole cluster.
    """
    names = list(dict.fromkeys(kind.partition for kind in kinds))
    chosen = options.partition or next((k.partition for k in kinds if k.is_default), None)
    if chosen is None:
        fix = f"give --partition; there are {', '.join(names) or 'none'}"
        yield Problem("--partition", None, "this cluster has no default partition", fix)
        return
    own = [kind for kind in kinds if kind.partition in chosen.split(",")]
    if not own:
        near = closest(chosen, names)
        fix = f"did you mean {near}?" if near else f"partitions are {', '.join(names)}"
        yield Problem("--partition", chosen, "there is no such partition", fix)
        return
    nodes = sum(kind.nodes for kind in own)
    if options.nodes > nodes:
        problem = f"partition {chosen} has {nodes} nodes"
        yield Problem("--nodes", options.nodes, problem, "ask for no more")
    if options.gpus_per_node > (most := max(kind.gpus for kind in own)):
        problem = f"the nodes of partition {chosen} have {most} GPUs at most"
        fix = "ask for no more, or for another --partition"
        yield Problem("--gpus_per_node", options.gpus_per_node, problem, fix)
    elif options.nodes > sum(k.nodes for k in own if k.gpus >= options.gpus_per_node):
        problem = f"partition {chosen} has not so many nodes with {options.gpus_per_node} GPUs"
        yield Problem("--nodes", options.nodes, problem, "ask for fewer nodes or GPUs")
    types = sorted({each for kind in own for each in kind.gpu_types})
    if options.gpus_per_node and len(types) > 1 and not options.sbatch:
        problem = f"partition {chosen} has GPUs of several types ({', '.join(types)})"
        fix = f"choose one, e.g. --sbatch=--gpus-per-node={types[-1]}:{options.gpus_per_node}"
        yield Problem("--gpus_per_node", options.gpus_per_node, problem, fix)
    limits = [kind.time_limit for kind in own if kind.time_limit not in ("infinite", "n/a")]
    if options.time and len(limits) == len(own):
        longest = max(limits, key=seconds_of)
        if seconds_of(options.time) > seconds_of(longest):
            problem = f"jobs of partition {chosen} end after {longest}"
            fix = "give no more; with --requeue a job runs again until it is done"
            yield Problem("--time", options.time, problem, fix)
