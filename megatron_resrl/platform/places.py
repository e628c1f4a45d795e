"""Where a rank runs, as every message that names a rank says it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """A rank, and the host and device that it is on."""

    rank: int
    host: str
    local_rank: int
    gpu: str | None = None
    """Number of the GPU on its host; None: it has none, or has not chosen it yet."""

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.where})"

    @property
    def where(self) -> str:
        """Host, local rank and GPU."""
        gpu = "" if self.gpu is None else f", GPU {self.gpu}"
        return f"host {self.host}, local rank {self.local_rank}{gpu}"

    def to_json(self) -> dict[str, Any]:
        """For other ranks; `Place(**...)` reads it."""
        return asdict(self)


def own_place(environment: Mapping[str, str] = os.environ) -> Place:
    """The place of this process. torch is asked for the GPU only where it is in use already.

    Args:
        environment: With torchrun's variables; without them the process is rank 0.
    """
    rank = environment.get("RANK", "0")
    local = environment.get("LOCAL_RANK", "0")
    return Place(
        rank=int(rank) if rank.isdecimal() else 0,
        host=socket.gethostname(),
        local_rank=int(local) if local.isdecimal() else 0,
        gpu=_gpu(environment),
    )


def hosts_of_only(ranks: Collection[int], places: Iterable[Place]) -> tuple[str, ...]:
    """Hosts all of whose ranks are among `ranks`, in order of their first rank.

    Args:
        ranks: Ranks of which something is said.
        places: Of all ranks of the job whose place is known.
    """
    of_host: dict[str, set[int]] = {}
    for place in places:
        of_host.setdefault(place.host, set()).add(place.rank)
    return tuple(host for host, there in of_host.items() if there <= set(ranks))


def _gpu(environment: Mapping[str, str]) -> str | None:
    """The number on the host, also where a launcher shows the rank only some of the GPUs."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    index = torch.cuda.current_device()
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return visible[index].strip() if index < len(visible) and visible[index] else str(index)
