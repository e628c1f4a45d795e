"""Servers that take the same weights; a failing server does not disturb the other servers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from megatron_resrl.rollout.weight_sync.control import ServerControl, ServerFailure

logger = logging.getLogger(__name__)

_CUT_OFF = "cut off"
"""Version label of weights that are partly old and partly new."""

Action = Callable[[ServerControl], object]
Calls = list[tuple[ServerControl, Future[object]]]
"""Calls in flight, for `Receivers.wait`."""


class Receivers:
    """Runs the same calls on all servers at once and drops those that fail."""

    def __init__(self, servers: Sequence[ServerControl]) -> None:
        self.alive = list(servers)
        self.failures: dict[str, ServerFailure] = {}
        self._pool = ThreadPoolExecutor(max(1, len(servers)), "weight sync")

    def __enter__(self) -> Receivers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def start(self, action: Action) -> Calls:
        """Begins a call on every server that has not failed; for `wait`."""
        return [(server, self._pool.submit(action, server)) for server in self.alive]

    def wait(self, calls: Calls) -> None:
        """Waits for calls; a call that raised `ServerFailure` drops its server.

        Raises:
            Exception: Any other exception of a call.
        """
        for server, call in calls:
            try:
                call.result()
            except ServerFailure as failure:
                self.drop(server, failure)

    def drop(self, server: ServerControl, failure: ServerFailure) -> None:
        """Continues without a server."""
        logger.warning("%s does not take the new weights: %s", server.url, failure)
        self.failures[server.url] = failure
        self.alive.remove(server)

    def drop_unfinished(self, calls: Calls, cause: str) -> None:
        """Continues with the servers whose call has succeeded.

        Args:
            calls: Of `start`.
            cause: Why an unfinished call fails; follows the URL of the server in the message.
        """
        self.wait([call for call in calls if call[1].done()])
        for server, call in calls:
            if not call.done():
                self.drop(server, ServerFailure(f"{server.url} {cause}"))

    def each(self, action: Action) -> None:
        """`start` and `wait` in one."""
        self.wait(self.start(action))


def all_hold(servers: Sequence[ServerControl], identities: Mapping[str, str]) -> bool:
    """Whether all workers of all servers keep these bytes; asks them. False for no bytes.

    Args:
        servers: A server that does not answer holds nothing.
        identities: Number of each bucket -> identity of its bytes.
    """
    answers: list[Mapping[str, str]] = []

    def ask(server: ServerControl) -> None:
        try:
            answer = server.post("/collective_rpc", {"method": "megatron_resrl_identities"})
            answers.extend(answer["results"])
        except ServerFailure:
            answers.append({})

    if not identities:
        return False
    with Receivers(servers) as receivers:
        receivers.each(ask)
    return all(answer == identities for answer in answers)


def pause(server: ServerControl) -> None:
    """Pauses a server's requests.

    Raises:
        ServerFailure: The server refused or did not answer.
    """
    server.post("/pause", params={"mode": "keep"})


def start_update(server: ServerControl, *, timeout_s: float | None = None) -> None:
    """Opens a weight update on a paused server.

    vLLM takes one update at a time: an update that was cut off, by a broken connection or because
    its trainer was killed, is closed first.

    Args:
        server: A paused server.
        timeout_s: Seconds that a call may take; None: the server's own.

    Raises:
        ServerFailure: The server refused or did not answer.
    """
    try:
        server.post("/start_weight_update", timeout_s=timeout_s)
    except ServerFailure:
        server.post("/finish_weight_update", {"weight_version": _CUT_OFF}, timeout_s=timeout_s)
        server.post("/start_weight_update", timeout_s=timeout_s)


def recover(server: ServerControl) -> None:
    """Resumes a server that an interrupted weight update left paused.

    The weights of the server are invalid until the next update.

    Raises:
        ServerFailure: The server refused or did not answer.
    """
    if not server.field("GET", "/is_paused", "is_paused"):
        return
    # Fails if the update had not begun, or another trainer has closed it.
    with contextlib.suppress(ServerFailure):
        server.post("/finish_weight_update", {"weight_version": _CUT_OFF})
    server.post("/resume")


def finish_update(server: ServerControl, version: int, *, timeout_s: float | None = None) -> None:
    """Closes an update, resets the key-value cache of the old weights, and resumes requests.

    vLLM computes the prefixes of responses in flight anew with the new weights: it would not reset
    a cache whose blocks are in use. A sleeping cache is woken first.

    Args:
        server: A server that has received all weights.
        version: Version of these weights.
        timeout_s: Seconds that closing may take; None: the server's own.

    Raises:
        ServerFailure: The server refused or did not answer.
    """
    body = {"weight_version": str(version)}
    server.post("/finish_weight_update", body, timeout_s=timeout_s)
    if server.cache_sleeps:
        server.post("/wake_up", params={"tags": "kv_cache"})
    everything = {"reset_running_requests": "true"}
    if not server.field("POST", "/reset_prefix_cache", "success", params=everything):
        raise ServerFailure(f"{server.url} did not reset its prefix cache after new weights")
    server.post("/resume")
