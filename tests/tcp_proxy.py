"""An address that leads to a server and can be made to disappear: what a network does."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator


class Proxy:
    """Forwards connections to `127.0.0.1:target` until it is closed; can be opened again."""

    def __init__(self, target: int, watch: Callable[[bytes], None] = lambda data: None) -> None:
        """
        Args:
            target: Port of the server.
            watch: Sees what clients send before it is passed on.
        """
        self.target = target
        self.watch = watch
        self.port = 0
        self.open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Listens, at the same port as before."""
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Refuses new connections and breaks the others."""
        for held in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)
            held.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self._sockets += [client, server]
                for pair, watch in (((client, server), self.watch), ((server, client), None)):
                    threading.Thread(target=_pump, args=(*pair, watch), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, watch: Callable[[bytes], None] | None):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            if watch is not None:
                watch(data)
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxy_to(url: str, watch: Callable[[bytes], None] = lambda data: None) -> Iterator[Proxy]:
    """A proxy to the server at `url`, closed with the block."""
    proxy = Proxy(int(url.rsplit(":", 1)[1]), watch)
    try:
        yield proxy
    finally:
        proxy.close()
