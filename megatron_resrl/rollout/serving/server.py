"""One vLLM server as a child process: starts, watches and stops it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_resrl.errors import RunError
from megatron_resrl.rollout.serving import guardian

LOG_LINES = 20
"""Last lines of a server's log that an error shows."""
STOP_S = 8.0
"""Seconds that a server gets to end by itself; well below those of the trainer, see `Deadline`."""
_POLL_S = 0.2
_SERVER_PORTS = range(20000, 32000)
"""Below those that Linux gives to outgoing connections."""


class StartFailure(RunError):
    """A server did not become ready; the message holds the end of its log."""

    common = True


@dataclass(frozen=True)
class ServerSpec:
    """How a server is started."""

    name: str
    """For messages, e.g. `server 0`."""
    model: str
    """The served name of the model, which no other server has."""
    arguments: tuple[str, ...]
    """Command without host and port, which each start chooses anew."""
    environment: Mapping[str, str]
    log: Path
    """File that collects the output of the server, over all restarts."""


class ServerProcess:
    """A started server; its whole process group ends with `kill` or `stop`, or with the trainer."""

    def __init__(self, spec: ServerSpec) -> None:
        """Starts the process and returns at once.

        Args:
            spec: What to start.
        """
        self.spec = spec
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-I", "-S", guardian.__file__, str(os.getpid())]
        command += [*spec.arguments, "--host", "127.0.0.1", "--port", str(port)]
        with spec.log.open("ab") as log:
            log.write(f"\n--- {' '.join(command[5:])}\n".encode())
            log.flush()
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command,
                env=dict(spec.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Leader of the server's process group."""
        return self._process.pid

    def exit_status(self) -> int | None:
        """None while it runs; 128 + signal if a signal ended it."""
        return self._process.poll()

    def wait_ready(
        self,
        timeout_s: float,
        answers: Callable[[], bool],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Returns when the server answers and its process lives.

        Another server may have taken the port since it was found free, and may answer while our
        server is about to end.

        Args:
            timeout_s: Seconds that the start may take from now on.
            answers: Whether our server answers at `url`.
            cancelled: Ends the wait early, without an error.

        Raises:
            StartFailure: The process ended or the time is up; the process is killed.
        """
        deadline = time.monotonic() + timeout_s
        while not cancelled():
            answered = answers()
            status = self.exit_status()
            if status is not None:
                self.kill()
                raise StartFailure(self.describe(f"ended with status {status} while it started"))
            if answered:
                return
            if time.monotonic() > deadline:
                self.kill()
                raise StartFailure(
                    self.describe(f"was not ready after vllm.start_timeout_s = {timeout_s:g} s")
                )
            time.sleep(_POLL_S)

    def describe(self, cause: str) -> str:
        """A message that names the server, what happened, and the end of its log."""
        with self.spec.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
        tail = "\n".join(f"    {line}" for line in lines) or "    (nothing)"
        server = f"vLLM {self.spec.name} ({self.url})"
        return f"{server} {cause}; its log {self.spec.log} ends with:\n{tail}"

    def stop(self, patience_s: float = STOP_S) -> None:
        """Asks the server to end, and kills what is left of its process group."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        self.kill()

    def kill(self) -> None:
        """Kills the whole process group, a stopped one, too."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        # The group may have members after its leader has ended.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def clean_environment(environment: Mapping[str, str], removed: Sequence[str]) -> dict[str, str]:
    """`environment` without the variables whose names start with one of `removed`."""
    return {
        name: value
        for name, value in environment.items()
        if not any(name.startswith(prefix) for prefix in removed)
    }


def _free_port() -> int:
    """A port that nobody listens at, and that no outgoing connection will be given.

    The server takes it after seconds of imports; in the system's own range, from 32768 on, it may
    be gone by then.
    """
    for port in random.SystemRandom().sample(_SERVER_PORTS, len(_SERVER_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise StartFailure(
        f"no port from {_SERVER_PORTS[0]} to {_SERVER_PORTS[-1]} is free for a vLLM server"
    )
