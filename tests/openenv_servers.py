"""A server made with OpenEnv's package, which has an environment of its own."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def openenv_server(episodes: int) -> Iterator[str]:
    """The address of the example's server until the block ends; skips where its package is not.

    Args:
        episodes: That it plays at once.
    """
    python = ROOT / ".venv-openenv" / "bin" / "python"
    if not python.exists():
        pytest.skip("python -m venv .venv-openenv && .venv-openenv/bin/pip install openenv-core")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = ROOT / "examples" / "agents" / "openenv" / "server.py"
    process = subprocess.Popen([python, script, str(port), str(episodes)])
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{url}/health").raise_for_status()
                break
            except httpx.TransportError:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()
