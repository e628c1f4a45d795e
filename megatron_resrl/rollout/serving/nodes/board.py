"""What rank 0 and the nodes of servers write for each other in a store of the job.

Everything is JSON, and nothing in it is run: a node makes its servers' commands from its own copy
of the recipe. Keys, all below the prefix `megatron_resrl_servers`:

    trainer                 rank 0: heartbeat, and what nodes must know of the run
    node/<node>             a node: heartbeat, and the state of its servers
    order/<node>/<server>   rank 0: start this server anew, or stop it
    nodes/<n>               the n-th node that has come by itself (`megatron-resrl serve`)
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

INTERVAL_S = 0.5
"""Seconds between two looks at the store, and two heartbeats."""
LOST_S = 30.0
"""Seconds without a heartbeat after which the other side counts as lost."""

TRAINER = "trainer"
_PREFIX = "megatron_resrl_servers"
_COUNT = "nodes"

Record = Mapping[str, Any]


class NodeBoard:
    """Records in a store. Each thread needs a board, and each board a connection, of its own."""

    def __init__(self, store: dist.Store, engine: str = "") -> None:
        """
        Args:
            store: Reached by rank 0 and all nodes.
            engine: Tells engines apart that use one store after the other.
        """
        self._store = dist.PrefixStore(_PREFIX + engine, store)

    def read(self, key: str) -> Record | None:
        """The record of a key; None: there is none yet."""
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def write(self, key: str, record: Record) -> None:
        """Replaces the record of a key."""
        self._store.set(key, json.dumps(record))

    def announce(self, node: str) -> None:
        """Adds a node to those that have come by themselves."""
        number = self._store.add(_COUNT, 1)
        self.write(f"{_COUNT}/{number}", {"node": node})

    def announced(self) -> list[str]:
        """Nodes that have come by themselves, each once, in the order in which they came."""
        records = (self.read(f"{_COUNT}/{n + 1}") for n in range(self._store.add(_COUNT, 0)))
        return list(dict.fromkeys(record["node"] for record in records if record is not None))


@dataclass
class Pulse:
    """Whether the other side lives: its heartbeat changes."""

    beat: object = None
    at: float = field(default_factory=time.monotonic)
    """When the heartbeat last changed."""

    def see(self, beat: object) -> None:
        """Takes the heartbeat that was read now."""
        if beat != self.beat:
            self.beat, self.at = beat, time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since the heartbeat last changed."""
        return time.monotonic() - self.at


def node_key(node: str) -> str:
    """Key of a node's own record."""
    return f"node/{node}"


def order_key(node: str, server: int) -> str:
    """Key of the order for one of a node's servers."""
    return f"order/{node}/{server}"


def proof_of(api_key: str | None, run: str) -> str:
    """Shows that rank 0 and a node have the same API key, without showing the key."""
    return hmac.new((api_key or "").encode(), run.encode(), hashlib.sha256).hexdigest()
