"""Where nodes are: which ranks start servers, by which address a node is reached, and the store."""

from __future__ import annotations

import datetime
import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist

from megatron_resrl.config.serving_store import STORE_VARIABLE, StoreAddress
from megatron_resrl.errors import InputError
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.rollout.serving.server import THIS_HOST, StartFailure

logger = logging.getLogger(__name__)

_RETRY_S = 1.0
_STORE_TIMEOUT = datetime.timedelta(seconds=60)
_ANY_PORT = 9
"""Nothing is sent to it."""


@dataclass(frozen=True)
class TrainerNodes:
    """The nodes that ranks train on. The first rank of each starts what runs once per node."""

    ranks: tuple[int, ...]
    """First rank of each node; rank 0 is the first one."""
    hosts: tuple[str, ...]
    """Host of each node."""

    @property
    def own(self) -> int | None:
        """Number of the node whose first rank this is; None: another rank."""
        rank = dist.get_rank()
        return self.ranks.index(rank) if rank in self.ranks else None


def trainer_nodes() -> TrainerNodes:
    """The nodes of this job. Collective."""
    return first_ranks(gather_objects((socket.gethostname(), os.environ.get("LOCAL_RANK"))))


def first_ranks(places: Sequence[tuple[str, str | None]]) -> TrainerNodes:
    """The first rank of each node: that of local rank 0, or the first of a host without one.

    Args:
        places: Host and LOCAL_RANK of each rank.
    """
    first: dict[int, str] = {}
    for rank, (host, local) in enumerate(places):
        if rank == 0 or local == "0" or (local is None and host not in first.values()):
            first[rank] = host
    return TrainerNodes(tuple(first), tuple(first.values()))


def address_towards(host: str) -> str:
    """The address of this node on the network by which it reaches `host`.

    Raises:
        InputError: No way leads there.
    """
    try:
        family, kind, *_, target = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)  # Asks for the route alone.
            return probe.getsockname()[0]
    except OSError as error:
        raise InputError(
            f"host {socket.gethostname()} has no way to {host!r}, the host of rank 0 "
            f"({error.strerror or error})"
        ) from error


def host_of_rank_zero() -> str:
    """As the launcher says it."""
    return os.environ.get("MASTER_ADDR", THIS_HOST)


def open_store(address: StoreAddress) -> dist.TCPStore:
    """Opens the store in which the nodes for rollouts announce themselves; on rank 0.

    Raises:
        InputError: The port is taken.
    """
    try:
        return dist.TCPStore(
            address.host,
            address.port,
            is_master=True,
            wait_for_workers=False,
            timeout=_STORE_TIMEOUT,
        )
    except dist.DistNetworkError as error:
        raise InputError(
            f"{STORE_VARIABLE} = {str(address)!r}: rank 0 cannot listen there "
            f"({str(error).splitlines()[0]}); choose a free port of the host of rank 0"
        ) from error


def reach_store(address: StoreAddress, timeout_s: float) -> dist.Store:
    """Waits for the store that rank 0 opens.

    Args:
        address: Of the store.
        timeout_s: Setting `vllm.start_timeout_s`.

    Raises:
        StartFailure: There was no store in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            # torch's own attempts fill the log with warnings.
            socket.create_connection((address.host, address.port), timeout=_RETRY_S).close()
            return dist.TCPStore(address.host, address.port, timeout=_STORE_TIMEOUT)
        except (OSError, dist.DistNetworkError, dist.DistStoreError) as error:
            if time.monotonic() > deadline:
                raise StartFailure(
                    f"{STORE_VARIABLE} = {str(address)!r}: no trainer answers there within "
                    f"vllm.start_timeout_s = {timeout_s:g} s ({str(error).splitlines()[0]}); start "
                    "the trainers with the same value, which names the host of rank 0"
                ) from error
        time.sleep(_RETRY_S)
