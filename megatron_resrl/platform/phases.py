"""What every rank is doing, so that a time-out names the missing ranks and their last phases.

Each rank writes the phase it enters to the job's store, and a thread writes a heartbeat every
second. A rank that learns of a time-out or a lost peer asks the store for the other ranks, and so
does a thread when the main thread waits for longer than a collective may take.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch.distributed as dist

from megatron_resrl.errors import RunError
from megatron_resrl.platform.ending import end_process
from megatron_resrl.platform.places import Place, hosts_of_only, own_place
from megatron_resrl.platform.watch import MainThreadWatch

logger = logging.getLogger(__name__)

_LOST_PEER = (
    *("Timed out", "timed out", "wait timeout"),
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe"),
)
"""What gloo, NCCL and the store say when another rank does not answer."""

HEARTBEAT_INTERVAL_S = 1.0
"""Seconds between the heartbeats of a rank."""

ANSWER_WITHIN_S = 5.0
"""Seconds that a rank gives the other ranks to report, too, that they wait in vain."""

_NAMED_RANKS = 8
"""Missing ranks spelled out in a message; of a whole job's, a few say it all."""


_STORE_LOST = "the job's store does not answer: its host, that of rank 0, is lost"


@dataclass(frozen=True)
class Missing:
    """Ranks that did not report that they wait, too."""

    lines: tuple[str, ...] = ()
    """One for each, those without a heartbeat first; or one that says why nothing is known."""
    lost_hosts: tuple[str, ...] = ()
    """Hosts none of whose ranks has a heartbeat."""


class CollectiveTimeout(RunError):
    """A rank did not arrive at a collective in time; the message names the phase and the rank."""


@dataclass(frozen=True)
class Doing:
    """What a rank is doing."""

    phase: str = "start"
    """Name of the innermost phase."""
    since: float = field(default_factory=time.monotonic)
    """Start of the phase, on the monotonic clock."""
    done: int = 0
    total: int = 0
    """Parts of the phase, e.g. responses; 0: unknown."""
    detail: str = ""
    """Further progress, e.g. "token 12/96"."""


@dataclass
class _RankStatus:
    """What this rank is doing, with its heartbeat and the watch over its main thread."""

    doing: Doing = field(default_factory=Doing)
    step: int | None = None
    board: _StatusBoard | None = None
    watch: MainThreadWatch | None = None
    failed: int | None = None
    """Id of the exception that a phase has reported; the exception would keep tensors alive."""


_status = _RankStatus()


def begin_step(step: int) -> None:
    """Sets the training step that the following phases belong to.

    Raises the audit event `megatron_resrl.step` with the number.
    """
    sys.audit("megatron_resrl.step", step)
    _status.step = step


def current_step() -> int | None:
    """The training step that is under way; None before the first."""
    return _status.step


def current() -> Doing:
    """What this rank is doing; safe to call from any thread."""
    return _status.doing


def progress(done: int, total: int, detail: str = "") -> None:
    """Sets the progress of the innermost phase of this rank; dropped when the phase ends.

    Args:
        done: Parts that are finished.
        total: Parts in all.
        detail: Further progress in words; empty: none.
    """
    _status.doing = replace(_status.doing, done=done, total=total, detail=detail)


def detail(text: str) -> None:
    """Sets the detail of the innermost phase of this rank and keeps the counts of `progress`."""
    _status.doing = replace(_status.doing, detail=text)


@contextlib.contextmanager
def named_phase(name: str) -> Iterator[None]:
    """Turns a collective's time-out or a lost peer in the block into an error that names the phase.

    Raises the audit event `megatron_resrl.phase` with the name on entry, for supervisors and tests
    (`sys.addaudithook`); it costs nothing without a hook.

    Raises:
        CollectiveTimeout: Names the phase, this rank, the backend's message, and for each rank
            that did not answer the last phase that it entered.
    """
    outer, _status.doing = _status.doing, Doing(name)
    try:
        if _status.board:
            _status.board.write("phase", _now())
        sys.audit("megatron_resrl.phase", name)
        yield
    except CollectiveTimeout:
        raise
    except BaseException as error:
        said = str(error)
        if isinstance(error, RuntimeError) and any(words in said for words in _LOST_PEER):
            raise _lost_peer(said) from error
        if _status.board and _status.failed != id(error):
            _status.failed = id(error)
            _status.board.write("failed", _now() | {"cause": f"{type(error).__name__}: {error}"})
        raise
    finally:
        _status.doing = outer


def _now() -> dict[str, object]:
    return {"phase": _status.doing.phase, "step": _status.step, "time": time.time()}


def _lost_peer(said: str) -> CollectiveTimeout:
    return _timeout(
        f"{_where()}: another rank did not take part in a collective within "
        f"parallel.timeout_minutes or has died ({said.splitlines()[0]})"
    )


def _timeout(text: str) -> CollectiveTimeout:
    """The error that says `text`, and which ranks are missing."""
    missing = _status.board.missing() if _status.board else Missing()
    error = CollectiveTimeout("\n  ".join([text, *missing.lines]))
    error.lost_hosts = missing.lost_hosts
    return error


def _where() -> str:
    where = f"phase {_status.doing.phase!r}, {own_place()}"
    return where if _status.step is None else f"{where}, step {_status.step}"


def start_heartbeat(
    store: dist.Store, rank: int, world_size: int, stuck_after_s: float | None = None
) -> None:
    """Starts to publish what this rank is doing in the job's store.

    Args:
        store: Store of the job, reachable by all ranks.
        rank: This rank.
        world_size: Number of ranks.
        stuck_after_s: Seconds for which the main thread may wait for other ranks before the
            process is ended, see `MainThreadWatch`; None: for ever.
    """
    stop_heartbeat()
    _status.step = None
    if world_size > 1:
        # A separate connection, because a connection that waits for a key is blocked.
        clone = store.clone()  # type: ignore[attr-defined]  # torch's stub lacks it
        own = dist.PrefixStore("megatron_resrl", clone)
        _status.board = _StatusBoard(own, rank, world_size)
        if stuck_after_s is not None:
            _status.watch = MainThreadWatch(stuck_after_s, _end_stuck)


def name_rank(rank: int) -> str:
    """A rank of this job, with its host, local rank and GPU where the job's store knows them."""
    place = _status.board.place_of(rank) if _status.board else None
    return f"rank {rank}" if place is None else str(place)


def stop_heartbeat() -> None:
    """Ends the heartbeat of this rank and the watch over its main thread."""
    if _status.watch:
        _status.watch.close()
    if _status.board:
        _status.board.close()
    _status.watch = _status.board = None


def _end_stuck(place: str) -> None:
    """Reports where the main thread is stuck and which ranks are missing; ends the process."""
    end_process(
        _timeout(
            f"{_where()}: this rank has waited for another rank for longer than "
            f"parallel.timeout_minutes allows, in {place}"
        )
    )


class _StatusBoard:
    """The status of all ranks in the job's store. Methods raise nothing and wait for a bounded
    time: the store ends with its host, and a job without a store must still end by itself."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._size = world_size
        self._others = [other for other in range(world_size) if other != rank]
        self._closed = threading.Event()
        self._store_lost = False
        self._set(f"place/{rank}", json.dumps(own_place().to_json()))
        self._heartbeat = threading.Thread(
            target=self._heartbeat_loop, name="heartbeat", daemon=True
        )
        self._heartbeat.start()

    def write(self, kind: str, note: dict[str, object]) -> None:
        """Writes a note of this rank for the other ranks."""
        self._set(f"{kind}/{self._rank}", json.dumps(note))

    def missing(self) -> Missing:
        """Waits a few seconds for the other ranks to report that they wait, too."""
        found: list[Missing] = []
        # A store whose host is stopped keeps the connection open and never answers.
        asking = threading.Thread(target=lambda: found.append(self._ask()), daemon=True)
        asking.start()
        asking.join(2 * ANSWER_WITHIN_S)
        return found[0] if found and found[0].lines else Missing((_STORE_LOST,))

    def close(self) -> None:
        """Ends the heartbeat."""
        self._closed.set()
        self._heartbeat.join(2 * HEARTBEAT_INTERVAL_S)

    def _heartbeat_loop(self) -> None:
        beat = 0
        while not self._closed.wait(HEARTBEAT_INTERVAL_S):
            beat += 1
            self._set(f"alive/{self._rank}", str(beat))

    def _set(self, key: str, value: str) -> None:
        if self._store_lost:
            return
        try:
            self._store.set(key, value)
        except RuntimeError as error:
            self._store_lost = True
            logger.warning("the job's store is gone (%s)", str(error).splitlines()[0])

    def _ask(self) -> Missing:
        try:
            self.write("waiting", _now())
            beats = {other: self._read("alive", other) for other in self._others}
            silent = self._others
            until = time.monotonic() + ANSWER_WITHIN_S
            while silent and time.monotonic() < until:
                time.sleep(0.2)
                silent = [other for other in silent if not self._heard_of(other)]
            silent = [other for other in self._others if self._read("waiting", other) is None]
            if not silent:
                return Missing(("all ranks are there and wait: the network lost a connection",))
            alive = {other: self._read("alive", other) != beats[other] for other in silent}
            silent = sorted(silent, key=lambda other: alive[other])
            lines = [self._describe(other, alive[other]) for other in silent[:_NAMED_RANKS]]
            # A rank that reported its failure has ended; its host goes on.
            gone = [
                other
                for other in silent
                if not alive[other] and self._read("failed", other) is None
            ]
            places = [place for rank in range(self._size) if (place := self.place_of(rank))]
        except RuntimeError:
            return Missing()
        if len(silent) > _NAMED_RANKS:
            lines.append(f"and {len(silent) - _NAMED_RANKS} more ranks did not answer")
        return Missing(tuple(lines), hosts_of_only(gone, places))

    def _heard_of(self, rank: int) -> bool:
        """Whether a rank has reported that it waits or that it failed."""
        return any(self._read(kind, rank) is not None for kind in ("waiting", "failed"))

    def _read(self, kind: str, rank: int) -> str | None:
        key = f"{kind}/{rank}"
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _describe(self, rank: int, alive: bool) -> str:
        failed, place = self._read("failed", rank), self.place_of(rank)
        if failed is not None:
            cause = json.loads(failed)["cause"]
            return f"{place or f'rank {rank}'} failed in {_when(failed)}: {cause}"
        said = f"rank {rank} did not answer" + (", though its process runs" if alive else "")
        entered = self._read("phase", rank)
        said += f": last seen entering {_when(entered)}" if entered else ": never seen"
        return said + (f" ({place.where})" if place else "")

    def place_of(self, rank: int) -> Place | None:
        """Where a rank is; None: it has not said so."""
        place = self._read("place", rank)
        return None if place is None else Place(**json.loads(place))


def _when(note: str) -> str:
    """A note's phase, step and age in words."""
    status = json.loads(note)
    of_step = "" if status["step"] is None else f" of step {status['step']}"
    age_s = max(0.0, time.time() - status["time"])
    return f"phase {status['phase']!r}{of_step}, {age_s:.0f} s ago"
