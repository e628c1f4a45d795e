"""What a server's answers, and the lack of them, say about it."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from megatron_resrl.rollout.serving.pooled_server import PooledServer, ServerState
from megatron_resrl.rollout.serving.requests import make_client

OK, SICK, DROPPED = "200 OK", "503 Service Unavailable", None
METRICS = 'vllm:generation_tokens_total{engine="0"} %d\nvllm:prompt_tokens_total 3.0\n'


class Server:
    """Speaks HTTP; each answer is one of a script, whose last one stays."""

    def __init__(self, *script: str | None, reused: str | None = OK) -> None:
        """
        Args:
            script: Statuses of answers to first requests of connections; `DROPPED`: none.
            reused: The same for later requests of a connection.
        """
        self._script = list(script)
        self._reused = reused
        self.made = 0
        """Tokens since the last question."""
        self._total = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        status = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                if status is None:
                    break
                self._total += self.made
                body = METRICS % self._total
                writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode())
                writer.write(body.encode())
                await writer.drain()
                status = self._reused
        writer.close()


def looks(server: Server, *, times: int, stall_timeout_s: float, busy: bool) -> list[str | None]:
    """What a pooled says at a look each tenth of a second."""

    async def run() -> list[str | None]:
        served = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        port = served.sockets[0].getsockname()[1]
        pooled = PooledServer(None, url=f"http://127.0.0.1:{port}", state=ServerState.SERVING)
        if busy:
            pooled.running[asyncio.current_task()] = None
        said = []
        async with await make_client() as client, served:
            for _ in range(times):
                said.append(await pooled.check_health(client, stall_timeout_s=stall_timeout_s))
                await asyncio.sleep(0.1)
        return said

    return asyncio.run(run())


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return port


def test_pooled_server_that_answers_is_healthy():
    assert looks(Server(OK), times=4, stall_timeout_s=0.15, busy=False) == [None] * 4


def test_pooled_server_that_makes_tokens_is_healthy():
    server = Server(OK)
    server.made = 2
    assert looks(server, times=4, stall_timeout_s=0.15, busy=True) == [None] * 4


def test_pooled_server_without_tokens_fails_after_the_timeout():
    *_, last = looks(Server(OK), times=8, stall_timeout_s=0.5, busy=True)
    assert "has 1 requests and made no token for" in last
    assert "vllm.stall_timeout_s = 0.5" in last


def test_pooled_server_gets_a_new_connection_each_time():
    server = Server(OK, reused=DROPPED)
    # Longer than the timeout, so that refused connections would be noticed.
    assert looks(server, times=24, stall_timeout_s=2, busy=False) == [None] * 24


def test_pooled_server_may_drop_a_connection():
    server = Server(OK, OK, DROPPED, OK)
    assert looks(server, times=4, stall_timeout_s=5, busy=False) == [None] * 4


def test_pooled_server_fails_if_it_drops_all_connections():
    first, *_, last = looks(Server(DROPPED), times=8, stall_timeout_s=0.5, busy=False)
    assert first is None
    assert "did not answer for" in last


def test_pooled_server_that_says_so_is_not_healthy():
    (said,) = looks(Server(SICK), times=1, stall_timeout_s=5, busy=False)
    assert "/health answered 503" in said


def test_pooled_server_that_refuses_connections_fails_at_once(closed_port):
    async def look() -> str | None:
        pooled = PooledServer(
            None, url=f"http://127.0.0.1:{closed_port}", state=ServerState.SERVING
        )
        async with await make_client() as client:
            return await pooled.check_health(client, stall_timeout_s=60)

    assert "cannot be reached (ConnectError" in asyncio.run(look())
