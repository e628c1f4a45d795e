"""HTTP servers that answer what a test says."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit


class Request(NamedTuple):
    """What a server was asked."""

    method: str
    route: str
    parameters: dict[str, str]
    body: Any
    authorization: str | None


Answer = tuple[int, Any]
"""Status, and text or what becomes JSON."""


@contextlib.contextmanager
def answering(answer: Callable[[Request], Answer]) -> Iterator[str]:
    """Serves until the block ends.

    Args:
        answer: Called with every request, one at a time for each connection.

    Yields:
        The server's url.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            parts = urlsplit(self.path)
            request = Request(
                self.command,
                parts.path,
                {name: values[0] for name, values in parse_qs(parts.query).items()},
                json.loads(self.rfile.read(length) or "null"),
                self.headers.get("Authorization"),
            )
            status, said = answer(request)
            content = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def model_card(name: str = "policy", **changes: Any) -> dict[str, Any]:
    """What vLLM's `/v1/models` answers."""
    card = {"id": name, "object": "model", "owned_by": "vllm", "root": "/models/m"}
    return {"object": "list", "data": [card | {"parent": None, "max_model_len": 4096} | changes]}


def vllm_like(card: Any, others: Callable[[Request], Answer] | None = None) -> Callable:
    """Answers as a healthy vLLM server whose `/v1/models` says `card`."""

    def answer(request: Request) -> Answer:
        if request.route == "/health":
            return 200, ""
        if request.route == "/v1/models":
            return 200, card
        if request.route == "/is_paused":
            return 200, {"is_paused": False}
        if request.route == "/metrics":
            return 200, ""
        return others(request) if others else (404, {"detail": "Not Found"})

    return answer


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
