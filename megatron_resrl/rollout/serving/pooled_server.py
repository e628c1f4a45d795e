"""One server as the pool sees it: its state, its load, and whether it makes progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

import httpx

from megatron_resrl.rollout.serving.jobs import Job
from megatron_resrl.rollout.serving.server import RunningServer, StartableServer
from megatron_resrl.rollout.weight_sync.control import ServerControl

_PROGRESS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")


class ServerState(Enum):
    """What a server is doing."""

    STARTING = "starting"
    """Not ready yet; for a server that this run did not start: not answering yet."""
    OUTDATED = "waits for the current weights"
    UPDATING = "takes weights or sleeps"
    """Reserved by the engine and paused: no new token does not count as a stall."""
    SERVING = "serving"
    GIVEN_UP = "given up"


@dataclass(eq=False)
class PooledServer:
    """A server across its restarts; changed by the pool's thread alone."""

    spec: StartableServer | None
    """How to start it; None: this run did not start it (`vllm.urls`)."""
    url: str = ""
    api_key: str | None = None
    """Sent with every call."""
    rank_beside: int = 0
    """See `ServerControl`."""
    state: ServerState = ServerState.STARTING
    process: RunningServer | None = None
    model: str | None = None
    """The name by which requests must call the model."""
    version: int = 0
    """Version of its weights."""
    connected: bool = False
    """Whether the weight sender has connected to the server since the server started."""
    running: dict[asyncio.Task[None], Job] = field(default_factory=dict)
    needs_probe: bool = False
    """A request to the server has failed, and its health has not been checked since."""
    restarts: int = 0
    """Restarts in a row, without a finished response between them."""
    responses: int = 0
    """Finished responses of the run."""
    generation: int = 0
    """Incremented at each failure; results of tasks from an earlier generation are ignored."""
    progress: float = 0.0
    """Sum of its token counters at the last probe."""
    progress_at: float = field(default_factory=time.monotonic)
    """When the counters last changed, or the server was idle and answered."""

    @property
    def name(self) -> str:
        """For messages."""
        if self.spec is None:
            return f"server {self.url}"
        return f"{self.spec.name} ({self.url})" if self.url else self.spec.name

    @property
    def waits_for_node(self) -> bool:
        """Whether it cannot be started because its node is missing."""
        return self.process is not None and self.process.waits_for() is not None

    @property
    def control(self) -> ServerControl:
        """Its control routes."""
        return ServerControl(self.url, api_key=self.api_key, rank_beside=self.rank_beside)

    def failure(self, cause: str) -> str:
        """A message about this server, with the end of its log if this run started it."""
        if self.process is not None:
            return self.process.describe(cause)
        return f"vLLM {self.name} {cause}"

    async def check_health(
        self, client: httpx.AsyncClient, *, stall_timeout_s: float
    ) -> str | None:
        """Asks the server for its health and its token counters.

        Args:
            client: Sends the requests.
            stall_timeout_s: Seconds without an answer, or with requests in flight and no token,
                after which the server counts as failed.

        Returns:
            The cause of a failure; None: the server is healthy, or the time-out has not passed.
        """
        if cause := self.process.why_ended() if self.process else None:
            return cause
        try:
            health = await client.get(f"{self.url}/health", timeout=stall_timeout_s / 2)
            metrics = await client.get(f"{self.url}/metrics", timeout=stall_timeout_s / 2)
        except (httpx.TimeoutException, httpx.RemoteProtocolError, httpx.ReadError):
            # A busy server drops a connection now and then; an ended server refuses the next one.
            return self._stalled(stall_timeout_s, "did not answer")
        except httpx.HTTPError as error:
            return f"cannot be reached ({type(error).__name__}: {error})"
        if health.is_error:
            return f"is not healthy: /health answered {health.status_code}"
        progress = token_count(metrics.text)
        if progress != self.progress or not self.running or self.state is not ServerState.SERVING:
            self.progress, self.progress_at = progress, time.monotonic()
        return self._stalled(stall_timeout_s, f"has {len(self.running)} requests and made no token")

    def _stalled(self, stall_timeout_s: float, what: str) -> str | None:
        seconds = time.monotonic() - self.progress_at
        if seconds < stall_timeout_s:
            return None
        return f"{what} for {seconds:.0f} s (vllm.stall_timeout_s = {stall_timeout_s:g})"


def least_busy(servers: Iterable[PooledServer]) -> PooledServer | None:
    """The server that takes requests and has the fewest; None: no server takes any now."""
    serving = (s for s in servers if s.state is ServerState.SERVING and not s.needs_probe)
    return min(serving, key=lambda server: len(server.running), default=None)


def token_count(metrics: str) -> float:
    """Sum of the counters of prompt tokens and generated tokens in a Prometheus text."""
    lines = (line for line in metrics.splitlines() if line.startswith(_PROGRESS))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
