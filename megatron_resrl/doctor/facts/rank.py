"""One rank: its place, the CPUs and limits that it has, the variables that libraries read."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from megatron_resrl.platform.places import Place

_LIMITS = {
    "nofile": resource.RLIMIT_NOFILE,
    "memlock": resource.RLIMIT_MEMLOCK,
    "nproc": resource.RLIMIT_NPROC,
    "core": resource.RLIMIT_CORE,
}
_PREFIXES = (
    *("NCCL_", "TORCH_NCCL_", "TORCH_DISTRIBUTED_", "GLOO_", "UCX_", "FI_"),
    *("CUDA_", "CUBLAS_", "NVIDIA_", "NVTE_", "PYTORCH_", "OMP_", "LD_", "MASTER_"),
)
"""Of variables that libraries read; none of them holds a secret."""


@dataclass(frozen=True)
class RankFacts:
    """Of one rank."""

    rank: int
    local_rank: int
    """Number among the ranks of its host."""
    node: str
    """Name of its host, see `node_name`."""
    cpus: list[int] = field(default_factory=list)
    """CPUs that the scheduler may put it on."""
    limits: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Soft and hard limit by name, as `ulimit` has them; -1: none. memlock and core in bytes."""
    environment: dict[str, str] = field(default_factory=dict)
    """The variables that libraries read."""

    @property
    def place(self) -> Place:
        """As messages name it."""
        return Place(self.rank, self.node, self.local_rank)


def node_name(environment: Mapping[str, str]) -> str:
    """The host, as Slurm names it; several of Slurm's nodes may be simulated on one machine."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()


def gather_rank(environment: Mapping[str, str]) -> RankFacts:
    """The facts of this process.

    Args:
        environment: With torchrun's variables.
    """
    return RankFacts(
        rank=int(environment.get("RANK", "0")),
        local_rank=int(environment.get("LOCAL_RANK", "0")),
        node=node_name(environment),
        cpus=sorted(os.sched_getaffinity(0)),
        limits={name: resource.getrlimit(number) for name, number in _LIMITS.items()},
        environment={
            name: value for name, value in environment.items() if name.startswith(_PREFIXES)
        },
    )
