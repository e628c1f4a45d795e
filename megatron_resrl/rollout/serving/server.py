"""One vLLM server: what the pool needs of it, and the server as a child process."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megatron_resrl.errors import RunError
from megatron_resrl.rollout.serving import guardian

LOG_LINES = 20
"""Last lines of a server's log that an error shows."""
STOP_S = 8.0
"""Seconds that a server gets to end by itself; well below those of the trainer, see `Deadline`."""
THIS_HOST = "127.0.0.1"
_PORT_TAKEN = ("address already in use", "errno 98")
"""What a server says that cannot listen at its port."""
_SERVER_PORTS = range(20000, 32000)
"""Below those that Linux gives to outgoing connections."""


class StartFailure(RunError):
    """A server did not become ready; the message holds the end of its log."""

    common = True


class RunningServer(Protocol):
    """A server that was started, on this node or on another."""

    @property
    def url(self) -> str:
        """Where it is reached; empty: not known yet."""
        ...

    def why_ended(self) -> str | None:
        """E.g. `ended with status 1`; None: it runs, as far as is known."""
        ...

    def port_was_taken(self) -> bool:
        """Whether a server that has ended could not listen at its port."""
        ...

    def waits_for(self) -> str | None:
        """Which node is missing, for a message; None: the server's node is there."""
        ...

    def describe(self, cause: str) -> str:
        """A message that names the server, what happened, and the end of its log."""
        ...

    def stop(self) -> None:
        """Asks the server to end, and kills what is left of it."""
        ...

    def kill(self) -> None:
        """Kills the server."""
        ...


class StartableServer(Protocol):
    """How a server is started, on this node or on another."""

    @property
    def name(self) -> str:
        """For messages, e.g. `server 0`."""
        ...

    @property
    def model(self) -> str:
        """The served name of the model, which no other server has."""
        ...

    def start(self) -> RunningServer:
        """Starts the server and returns at once."""
        ...


@dataclass(frozen=True)
class ServerSpec:
    """How a server is started on this node."""

    name: str
    """For messages, e.g. `server 0`."""
    model: str
    """The served name of the model, which no other server has."""
    arguments: tuple[str, ...]
    """Command without the model's served name, host and port, which each start adds."""
    environment: Mapping[str, str]
    log: Path
    """File that collects the output of the server, over all restarts."""
    host: str = THIS_HOST
    """Address at which it listens."""

    def start(self) -> ServerProcess:
        """See `StartableServer`."""
        return ServerProcess(self)


class ServerProcess:
    """A started server; its whole process group ends with `kill` or `stop`, or with the trainer."""

    def __init__(self, spec: ServerSpec) -> None:
        """Starts the process and returns at once.

        Args:
            spec: What to start.
        """
        self.spec = spec
        self._port = hold_port(spec.host)
        port = self._port.getsockname()[1]
        self.url = f"http://{f'[{spec.host}]' if ':' in spec.host else spec.host}:{port}"
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-I", "-S", guardian.__file__, str(os.getpid())]
        command += [*spec.arguments, "--served-model-name", spec.model]
        command += ["--host", spec.host, "--port", str(port)]
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

    def why_ended(self) -> str | None:
        """See `RunningServer`."""
        status = self.exit_status()
        return None if status is None else f"ended with status {status}"

    def port_was_taken(self) -> bool:
        """See `RunningServer`."""
        tail = "\n".join(self.log_tail()).lower()
        return self.exit_status() is not None and any(words in tail for words in _PORT_TAKEN)

    def waits_for(self) -> None:
        """See `RunningServer`; a process of this node waits for nothing."""

    def describe(self, cause: str) -> str:
        """See `RunningServer`."""
        server = f"vLLM {self.spec.name} ({self.url})"
        return f"{server} {cause}; {log_end(self.spec.log, self.log_tail())}"

    def log_tail(self) -> list[str]:
        """The last lines that the server has written since it was started."""
        with self.spec.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace").splitlines()[-LOG_LINES:]

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
        self._port.close()

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


def log_end(log: Path | str, lines: Sequence[str]) -> str:
    """The last lines of a server's log, for a message."""
    tail = "\n".join(f"    {line}" for line in lines) or "    (nothing)"
    return f"its log {log} ends with:\n{tail}"


def hold_port(host: str) -> socket.socket:
    """Reserves a port for a server that listens there after seconds of imports.

    Returns:
        A socket that is bound to the port and does not listen. While it is open no outgoing
        connection is given the port and no other run chooses it; a server can still listen there.

    Raises:
        StartFailure: No port is free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in random.SystemRandom().sample(_SERVER_PORTS, len(_SERVER_PORTS)):
        holder = socket.socket(family, socket.SOCK_STREAM)
        try:
            holder.bind((host, port))
        except OSError:
            holder.close()
            continue
        # After the port is bound: whoever else binds without these options, as this loop does, is
        # refused. vLLM sets the first one, and some of its versions both.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return holder
    raise StartFailure(
        f"no port of {host} from {_SERVER_PORTS[0]} to {_SERVER_PORTS[-1]} is free for a vLLM "
        "server"
    )
