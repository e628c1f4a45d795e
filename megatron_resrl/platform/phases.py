"""What every rank is doing, so that a rank that waits in vain can say for whom and since when.

Each rank writes the phase it enters to the job's store, and a thread writes a heartbeat every
second. A rank that learns of a time-out or a lost peer asks the store for the other ranks, and so
does a thread when the main thread waits for longer than a collective may take.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist

from megatron_resrl.errors import RunError
from megatron_resrl.platform.ending import end_process
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


class CollectiveTimeout(RunError):
    """A rank did not arrive at a collective in time; the message names the phase and the rank."""


@dataclass(frozen=True)
class Doing:
    """What a rank is doing."""

    phase: str = "start"
    """The innermost one."""
    since: float = field(default_factory=time.monotonic)
    """When it began, on the monotonic clock."""
    done: int = 0
    total: int = 0
    """Parts of the phase, e.g. responses; 0: unknown."""
    detail: str = ""
    """More of where it stands, e.g. "token 12/96"."""


@dataclass
class _RankStatus:
    """What this rank is doing, and who watches it."""

    doing: Doing = field(default_factory=Doing)
    step: int | None = None
    board: _StatusBoard | None = None
    watch: MainThreadWatch | None = None
    failed: int | None = None
    """The exception that the innermost phase has noted; by id, as it would keep tensors alive."""


_status = _RankStatus()


def begin_step(step: int) -> None:
    """Says which training step the phases from here on belong to.

    Raises the audit event `megatron_resrl.step` with the number.
    """
    sys.audit("megatron_resrl.step", step)
    _status.step = step


def current_step() -> int | None:
    """The training step that is under way; None before the first."""
    return _status.step


def current() -> Doing:
    """What this rank is doing; may be asked from any thread."""
    return _status.doing


def progress(done: int, total: int, detail: str = "") -> None:
    """Says how far the innermost phase of this rank is; forgotten when the phase ends.

    Args:
        done: Parts that are finished.
        total: Parts in all.
        detail: More in words; empty: nothing.
    """
    _status.doing = replace(_status.doing, done=done, total=total, detail=detail)


def detail(text: str) -> None:
    """Says more of where the innermost phase of this rank is; what `progress` counted stays."""
    _status.doing = replace(_status.doing, detail=text)


@contextlib.contextmanager
def named_phase(name: str) -> Iterator[None]:
    """Turns a collective's time-out or a lost peer inside the block into an error that names it.

    Raises the audit event `megatron_resrl.phase` with the name on entry, for supervisors and tests
    (`sys.addaudithook`); it costs nothing without a hook.

    Raises:
        CollectiveTimeout: With the phase, this rank, what the backend said, and the ranks that
            did not answer with the phase that each was last seen to enter.
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
            raise CollectiveTimeout(_lost_peer(said)) from error
        if _status.board and _status.failed != id(error):
            _status.failed = id(error)
            _status.board.write("failed", _now() | {"cause": f"{type(error).__name__}: {error}"})
        raise
    finally:
        _status.doing = outer


def _now() -> dict[str, object]:
    return {"phase": _status.doing.phase, "step": _status.step, "time": time.time()}


def _lost_peer(said: str) -> str:
    text = (
        f"{_where()}: another rank did not take part in a collective within "
        f"parallel.timeout_minutes or has died ({said.splitlines()[0]})"
    )
    missing = _status.board.missing() if _status.board else []
    return "\n  ".join([text, *missing])


def _where() -> str:
    where = f"phase {_status.doing.phase!r}, rank {os.environ.get('RANK', '0')}"
    return where if _status.step is None else f"{where}, step {_status.step}"


def start_heartbeat(
    store: dist.Store, rank: int, world_size: int, stuck_after_s: float | None = None
) -> None:
    """Lets the ranks see from now on what each of them is doing.

    Args:
        store: Of the job, reachable by all ranks.
        rank: This rank.
        world_size: Number of ranks.
        stuck_after_s: Seconds after which a main thread that does not move from a wait for other
            ranks ends the process, see `MainThreadWatch`; None: it may wait for ever.
    """
    stop_heartbeat()
    _status.step = None
    if world_size > 1:
        # A connection of its own: a rank that waits for a key keeps its connection to itself.
        clone = store.clone()  # type: ignore[attr-defined]  # torch's stub lacks it
        own = dist.PrefixStore("megatron_resrl", clone)
        _status.board = _StatusBoard(own, rank, world_size)
        if stuck_after_s is not None:
            _status.watch = MainThreadWatch(stuck_after_s, _end_stuck)


def stop_heartbeat() -> None:
    """Ends the heartbeat of this rank and the watch over its main thread."""
    if _status.watch:
        _status.watch.close()
    if _status.board:
        _status.board.close()
    _status.watch = _status.board = None


def _end_stuck(place: str) -> None:
    """Says where the main thread is stuck and for whom, and ends the process, which it cannot."""
    text = (
        f"{_where()}: this rank has waited for another one for longer than "
        f"parallel.timeout_minutes allows, in {place}"
    )
    missing = _status.board.missing() if _status.board else []
    error = CollectiveTimeout("\n  ".join([text, *missing]))
    end_process(error)


class _StatusBoard:
    """The ranks' notes in the store. Nothing here raises or waits for longer than said: the store
    ends with its host, and a job that has lost it must still end by itself."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._others = [other for other in range(world_size) if other != rank]
        self._closed = threading.Event()
        self._store_lost = False
        self._set(f"place/{rank}", _own_place())
        self._heartbeat = threading.Thread(
            target=self._heartbeat_loop, name="heartbeat", daemon=True
        )
        self._heartbeat.start()

    def write(self, kind: str, note: dict[str, object]) -> None:
        """Leaves a note of this rank for the others."""
        self._set(f"{kind}/{self._rank}", json.dumps(note))

    def missing(self) -> list[str]:
        """Waits a few seconds for the other ranks to report that they wait, too.

        Returns:
            A line for each rank that did not, those without a heartbeat first; or one line
            that says why nothing is known.
        """
        lines: list[str] = []
        # A store whose host is stopped keeps the connection open and never answers.
        asking = threading.Thread(target=lambda: lines.extend(self._ask()), daemon=True)
        asking.start()
        asking.join(2 * ANSWER_WITHIN_S)
        return list(lines) or ["the job's store does not answer: its host, that of rank 0, is lost"]

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

    def _ask(self) -> list[str]:
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
                return ["all ranks are there and wait: the network lost a connection"]
            alive = {other: self._read("alive", other) != beats[other] for other in silent}
            silent = sorted(silent, key=lambda other: alive[other])
            lines = [self._describe(other, alive[other]) for other in silent[:_NAMED_RANKS]]
        except RuntimeError:
            return []
        if len(silent) > _NAMED_RANKS:
            lines.append(f"and {len(silent) - _NAMED_RANKS} more ranks did not answer")
        return lines

    def _heard_of(self, rank: int) -> bool:
        """Whether a rank said that it waits or why it failed."""
        return any(self._read(kind, rank) is not None for kind in ("waiting", "failed"))

    def _read(self, kind: str, rank: int) -> str | None:
        key = f"{kind}/{rank}"
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _describe(self, rank: int, alive: bool) -> str:
        failed = self._read("failed", rank)
        if failed is not None:
            place = self._read("place", rank)
            return (
                f"rank {rank}{f' ({place})' if place else ''} failed in {_place(failed)}: "
                f"{json.loads(failed)['cause']}"
            )
        said = f"rank {rank} did not answer" + (", though its process runs" if alive else "")
        seen = self._read("phase", rank)
        said += f": last seen entering {_place(seen)}" if seen else ": never seen"
        place = self._read("place", rank)
        return said + (f" ({place})" if place else "")


def _own_place() -> str:
    """This rank's host, and which of its GPUs or ranks it is."""
    if torch.cuda.is_available():
        return f"{socket.gethostname()}, GPU {torch.cuda.current_device()}"
    return f"{socket.gethostname()}, local rank {os.environ.get('LOCAL_RANK', '0')}"


def _place(note: str) -> str:
    """A note's phase, step and age in words."""
    seen = json.loads(note)
    of_step = "" if seen["step"] is None else f" of step {seen['step']}"
    return f"phase {seen['phase']!r}{of_step}, {max(0.0, time.time() - seen['time']):.0f} s ago"
