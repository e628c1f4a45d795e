"""Rank 0's side: which nodes of servers are there, and servers that are started on them."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_resrl.rollout.serving.nodes.board import (
    INTERVAL_S,
    LOST_S,
    TRAINER,
    NodeBoard,
    Pulse,
    Record,
    node_key,
    order_key,
)
from megatron_resrl.rollout.serving.server import log_end

logger = logging.getLogger(__name__)

_GOODBYE_S = 5.0
"""Seconds in which nodes read that the job has ended."""


@dataclass
class Node:
    """A node of servers, as rank 0 knows it."""

    key: str | None
    """None: it has not come yet."""
    label: str
    """For messages: its host."""
    record: Record | None = None
    """What the node last wrote."""
    pulse: Pulse = field(default_factory=Pulse)

    @property
    def agent(self) -> str | None:
        """Identifies the process that starts servers there."""
        return None if self.record is None else self.record["agent"]

    @property
    def refusal(self) -> str | None:
        """Why it cannot work for this run; None: it can, as far as is known."""
        return None if self.record is None else self.record.get("refused")

    @property
    def lives(self) -> bool:
        """Whether it works for this run, and its heartbeat was seen lately."""
        can_work = self.record is not None and self.refusal is None
        return can_work and self.pulse.silent_s < LOST_S


class NodeDirectory:
    """The nodes, and the orders for their servers; a thread reads and writes the store.

    Attributes:
        nodes: By number.
    """

    def __init__(
        self,
        board: NodeBoard,
        nodes: Sequence[Node],
        facts: Mapping[str, Any],
        missing: Callable[[Sequence[Node]], str],
    ) -> None:
        """
        Args:
            board: For the directory's thread alone.
            nodes: Those without a key are filled with the nodes that come by themselves.
            facts: What nodes must know of the run.
            missing: A sentence about nodes of which some have not come.
        """
        self.nodes = list(nodes)
        self._board = board
        self._facts = dict(facts)
        self._missing = missing
        self._lock = threading.Lock()
        self._orders: dict[tuple[int, int], RemoteServer] = {}
        self._starts = 0
        self._beat = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vllm-nodes", daemon=True)

    def begin(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def order(self, spec: RemoteSpec) -> RemoteServer:
        """Has a server started as soon as its node is there."""
        with self._lock:
            self._starts += 1
            server = RemoteServer(self, spec, self._starts)
            self._orders[spec.node, spec.number] = server
        return server

    def missing(self) -> str:
        """A sentence about the nodes that have not come."""
        return self._missing(self.nodes)

    def turn(self, *, ended: bool = False) -> None:
        """Writes rank 0's heartbeat, reads the nodes, and passes orders on."""
        if any(node.key is None for node in self.nodes):
            self._fill()
        self._beat += 1
        places = {node.key: number for number, node in enumerate(self.nodes) if node.key}
        heartbeat = {"beat": self._beat, "ended": ended, "nodes": places}
        self._board.write(TRAINER, self._facts | heartbeat)
        for node in self.nodes:
            record = self._board.read(node_key(node.key)) if node.key is not None else None
            if record is not None:
                node.pulse.see((record["agent"], record["beat"]))
                node.record = record
        with self._lock:
            orders = list(self._orders.values())
        for server in orders:
            server.pass_on(self._board)

    def close(self) -> None:
        """Tells the nodes that the job has ended, and waits a moment until they know."""
        self._closed.set()
        self._thread.join(_GOODBYE_S)
        if self._thread.is_alive():
            return  # The store does not answer.
        try:
            until = time.monotonic() + _GOODBYE_S
            while time.monotonic() < until:
                self.turn(ended=True)
                if all(not node.lives or (node.record or {})["ended"] for node in self.nodes):
                    return
                time.sleep(INTERVAL_S / 5)
        except RuntimeError as error:
            logger.info("the store of the job is gone: %s", str(error).splitlines()[0])

    def _fill(self) -> None:
        """Gives nodes that have come by themselves a place, as long as there are places."""
        known = {node.key for node in self.nodes}
        for key in self._board.announced():
            if key in known:
                continue
            free = next((node for node in self.nodes if node.key is None), None)
            if free is None:
                return
            free.key = free.label = key
            free.pulse = Pulse()
            logger.info("node %s has come for rollouts", key)

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self.turn()
                self._closed.wait(INTERVAL_S)
        except RuntimeError as error:
            # All nodes look lost from now on.
            logger.warning("the store of the job is gone: %s", str(error).splitlines()[0])


@dataclass(frozen=True)
class RemoteSpec:
    """A server that another node starts; see `StartableServer`."""

    directory: NodeDirectory
    node: int
    """Number of its node."""
    number: int
    """Among the servers of its node."""
    total: int
    """Number among all servers."""
    model: str = field(default_factory=lambda: f"policy-{secrets.token_hex(8)}")
    """The served name of the model, which no other server has."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"server {self.total} on {self.directory.nodes[self.node].label}"

    def start(self) -> RemoteServer:
        """See `StartableServer`."""
        return self.directory.order(self)


class RemoteServer:
    """One start of a server on another node; see `RunningServer`."""

    def __init__(self, directory: NodeDirectory, spec: RemoteSpec, start: int) -> None:
        """See `NodeDirectory.order`."""
        self.spec = spec
        self._node = directory.nodes[spec.node]
        self._missing = directory.missing
        self._start = start
        self._agent: str | None = None
        """Whom the start was ordered from; None: the node is not there."""
        self._stop = False
        self._passed_on = False

    @property
    def url(self) -> str:
        """See `RunningServer`."""
        return self._report().get("url", "")

    def why_ended(self) -> str | None:
        """See `RunningServer`."""
        node = self._node
        if node.refusal:
            return f"is refused by its node ({node.refusal})"
        if self._agent is None:
            return None
        if not node.lives:
            return f"is lost with its node {node.label}, silent for {node.pulse.silent_s:.0f} s"
        if node.agent != self._agent:
            return f"ended with an earlier `serve` of its node {node.label}"
        return self._report().get("ended")

    def port_was_taken(self) -> bool:
        """See `RunningServer`."""
        return self._report().get("port_was_taken", False)

    def waits_for(self) -> str | None:
        """See `RunningServer`."""
        there = self._agent is not None and self._node.lives
        return None if there or self._node.refusal else self._missing()

    def describe(self, cause: str) -> str:
        """See `RunningServer`."""
        report = self._report()
        message = f"vLLM {self.spec.name} ({self.url or 'no address yet'}) {cause}"
        if "tail" in report:
            return f"{message}; {log_end(report['log'], report['tail'])}"
        return f"{message}; its log is {report['log']}" if "log" in report else message

    def stop(self) -> None:
        """See `RunningServer`; the node does it, and rank 0 does not wait."""
        self.kill()

    def kill(self) -> None:
        """See `stop`."""
        self._stop, self._passed_on = True, False

    def pass_on(self, board: NodeBoard) -> None:
        """Writes the order once the node is there; called by the directory's thread alone."""
        node = self._node
        if self._passed_on or node.key is None or not node.lives:
            return
        if self._agent is None and self._stop:
            return
        agent = self._agent or node.agent
        order = {"agent": agent, "start": self._start, "model": self.spec.model}
        self._passed_on = True
        board.write(order_key(node.key, self.spec.number), order | {"stop": self._stop})
        self._agent = agent

    def _report(self) -> dict[str, Any]:
        """What the node says of this start of the server."""
        record = self._node.record
        if record is None or record["agent"] != self._agent:
            return {}
        report = record["servers"][self.spec.number]
        return report if report["start"] == self._start else {}
