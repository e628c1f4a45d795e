"""The board on which the ranks of a job write what they found; a rank that does not come is named.

Ranks meet at the store of their launcher, as those of a run do. Everything has a time limit.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from megatron_resrl.errors import InputError, RunError


class RankZeroAbsent(RunError):
    """Nobody listens where the ranks are to meet."""


class Store(Protocol):
    """What is used of torch's stores."""

    def set(self, key: str, value: str) -> None:
        """Writes a value."""
        ...

    def get(self, key: str) -> bytes:
        """Reads a value; waits until it is there."""
        ...

    def wait(self, keys: list[str], timeout: datetime.timedelta) -> None:
        """Waits until all keys are there; raises RuntimeError after the time-out."""
        ...


class _OwnStore:
    """Of a process that is alone."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self._values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self._values[key]

    def wait(self, keys: list[str], timeout: datetime.timedelta) -> None:
        if not self._values.keys() >= set(keys):
            raise RuntimeError("nobody else writes")


class Meeting:
    """The board of this rank.

    Args:
        store: Shared by all ranks.
        rank: This rank.
        size: Ranks of the job.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store, self.rank, self.size = store, rank, size

    def write(self, key: str, value: Any) -> None:
        """Writes a value, as JSON, for all ranks."""
        # A store that is gone: rank 0 has ended, and says what it knew.
        with contextlib.suppress(RuntimeError):
            self._store.set(key, json.dumps(value))

    def write_own(self, key: str, value: Any) -> None:
        """Writes this rank's value, see `collect`."""
        self.write(f"{key}/{self.rank}", value)

    def read(self, key: str, limit_s: float) -> Any | None:
        """A value; None: it was not there in time."""
        try:
            self._store.wait([key], datetime.timedelta(seconds=max(0.01, limit_s)))
            return json.loads(self._store.get(key))
        except RuntimeError:
            return None

    def collect(self, key: str, ranks: Iterable[int], limit_s: float) -> dict[int, Any]:
        """Every rank's own value, by rank; those are missing that were not there in time."""
        found: dict[int, Any] = {}
        until = time.monotonic() + limit_s
        for rank in ranks:
            # Once the time is out, those that are there already are read.
            value = self.read(f"{key}/{rank}", until - time.monotonic())
            if value is not None:
                found[rank] = value
        return found

    def roll(self, place: Any, limit_s: float) -> dict[int, Any]:
        """Who has come. Called once, by every rank.

        Args:
            place: This rank's own, JSON.
            limit_s: Seconds that rank 0 waits for the others.

        Returns:
            Places by rank, the same on all ranks. Ranks that came too late are not among them.

        Raises:
            RankZeroAbsent: Rank 0 did not answer.
        """
        self.write_own("here", place)
        if self.rank == 0:
            self.write("roll", self.collect("here", range(self.size), limit_s))
        # Rank 0 may have begun to wait later than this rank.
        called = self.read("roll", 2 * limit_s)
        if called is None:
            raise RankZeroAbsent(f"rank 0 came, and did not answer within {2 * limit_s:.0f} s")
        return {int(rank): each for rank, each in called.items()}


def alone() -> Meeting:
    """The board of a process that no launcher started."""
    return Meeting(_OwnStore(), 0, 1)


def join(environment: Mapping[str, str], limit_s: float) -> Meeting:
    """Joins the other ranks.

    Args:
        environment: With torchrun's variables, RANK among them.
        limit_s: Seconds that this rank tries to reach rank 0.

    Raises:
        RankZeroAbsent: Nobody listens where the ranks are to meet.
        InputError: The port is taken.
        ImportError, OSError: torch cannot be imported.
    """
    import torch.distributed as dist  # Here: a torch that cannot be imported is a finding.

    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    of_torchrun = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(
            host,
            port,
            is_master=rank == 0 and not of_torchrun,
            timeout=datetime.timedelta(seconds=limit_s),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):
            raise InputError(
                f"MASTER_PORT = {port}: another process on this host listens there; choose another "
                "port, the same for all ranks"
            ) from error
        raise RankZeroAbsent(
            f"rank 0 did not come: nobody listens at {host}:{port} (MASTER_ADDR, MASTER_PORT) "
            f"within {limit_s:.0f} s; see whether its process started, and whether a firewall "
            "closes the port"
        ) from error
    # torchrun starts ranks again, and keeps its store.
    start = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Meeting(dist.PrefixStore(f"doctor/{start}", store), rank, size)
