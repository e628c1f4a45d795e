"""A node's side: starts and stops the servers of this node as rank 0 orders."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from megatron_resrl.rollout.serving.nodes.board import (
    INTERVAL_S,
    TRAINER,
    NodeBoard,
    Pulse,
    node_key,
    order_key,
)
from megatron_resrl.rollout.serving.server import ServerProcess, ServerSpec, StartFailure

logger = logging.getLogger(__name__)


@dataclass
class _Slot:
    """One server of this node, over all of its starts."""

    spec: ServerSpec
    start: int = 0
    """Number of the last start that was ordered; 0: none yet."""
    process: ServerProcess | None = None
    refusal: str | None = None
    """Why no process could be started."""

    def report(self) -> dict[str, Any]:
        """What rank 0 wants to know."""
        report: dict[str, Any] = {"start": self.start, "log": str(self.spec.log)}
        if self.process is None:
            return report | {"url": "", "ended": self.refusal}
        report |= {"url": self.process.url, "ended": self.process.why_ended()}
        if report["ended"]:
            taken = self.process.port_was_taken()
            report |= {"port_was_taken": taken, "tail": self.process.log_tail()}
        return report


class NodeAgent:
    """Follows rank 0's orders in a thread, and reports.

    Attributes:
        trainer: Heartbeat of rank 0, as far as it was read.
        turns: Heartbeat of the agent's own thread.
        ended: Set when the job has ended, or the store is gone.
        orderly: Whether rank 0 has said that the job has ended.
        replaced: Whether another agent has taken this node over.
    """

    def __init__(self, board: NodeBoard, node: str, specs: Sequence[ServerSpec]) -> None:
        """
        Args:
            board: For the agent's thread alone.
            node: Key of this node.
            specs: Its servers.
        """
        self.trainer = Pulse()
        self.turns = Pulse()
        self.ended = threading.Event()
        self.orderly = False
        self.replaced = False
        self._board = board
        self._node = node
        self._slots = [_Slot(spec) for spec in specs]
        self._id = secrets.token_hex(8)
        self._beat = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vllm-node", daemon=True)

    def begin(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, if it still answers, and this node's servers."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(4 * INTERVAL_S)
        processes = [slot.process for slot in self._slots if slot.process is not None]
        if processes:
            with ThreadPoolExecutor(len(processes)) as pool:
                list(pool.map(ServerProcess.stop, processes))

    def turn(self) -> None:
        """Reads rank 0's heartbeat and orders, follows them, and reports."""
        trainer = self._board.read(TRAINER)
        if trainer is not None:
            self.trainer.see(trainer["beat"])
            if trainer["ended"]:
                self.orderly = True
                self.ended.set()
        own = self._board.read(node_key(self._node)) if self._beat else None
        if own is not None and own["agent"] != self._id:
            self.replaced = True
            self.ended.set()
            return
        for number, slot in enumerate(self._slots):
            order = self._board.read(order_key(self._node, number))
            if order is not None and order["agent"] == self._id:
                _follow(slot, order)
        self._beat += 1
        self.turns.see(self._beat)
        servers = [slot.report() for slot in self._slots]
        record = {"agent": self._id, "beat": self._beat, "ended": self.orderly, "servers": servers}
        self._board.write(node_key(self._node), record)

    def _run(self) -> None:
        try:
            while not self._closed.is_set() and not self.ended.is_set():
                self.turn()
                self._closed.wait(INTERVAL_S)
        except RuntimeError as error:
            # The store ends with the job.
            logger.info("the store of the job is gone: %s", str(error).splitlines()[0])
        finally:
            self.ended.set()


def _follow(slot: _Slot, order: Mapping[str, Any]) -> None:
    """Starts or stops a server, if the order is a new one."""
    if order["start"] != slot.start:
        if slot.process is not None:
            slot.process.kill()
        slot.start, slot.process, slot.refusal = order["start"], None, None
        if not order["stop"]:
            try:
                slot.process = replace(slot.spec, model=order["model"]).start()
            except (OSError, StartFailure) as error:
                slot.refusal = f"could not be started ({error})"
    elif order["stop"] and slot.process is not None and slot.process.exit_status() is None:
        slot.process.kill()
