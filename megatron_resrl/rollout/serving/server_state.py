"""One server as the pool sees it: its state, its load, and whether it gets anywhere."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import Enum

import httpx

from megatron_resrl.rollout.serving.jobs import Job
from megatron_resrl.rollout.serving.server import ServerProcess, ServerSpec
from megatron_resrl.rollout.weight_sync.control import ServerControl

_PROGRESS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")


class State(Enum):
    """Where a server is on its way to work."""

    STARTING = "starting"
    """Not ready, or, for one that is not ours, not answering."""
    OUTDATED = "waits for the current weights"
    UPDATING = "takes weights or sleeps"
    """In the hands of the engine: paused, so that no token means nothing."""
    SERVING = "serving"
    GIVEN_UP = "given up"


@dataclass(eq=False)
class Slot:
    """A server, over its restarts; changed by the pool's thread alone."""

    spec: ServerSpec | None
    """None: the server is not ours."""
    url: str = ""
    api_key: str | None = None
    """Shown with every call."""
    state: State = State.STARTING
    process: ServerProcess | None = None
    model: str | None = None
    """The name under which it knows the model."""
    version: int = 0
    """Of the weights that it has."""
    connected: bool = False
    """It has been connected to the sender of weights since it started."""
    running: dict[asyncio.Task[None], Job] = field(default_factory=dict)
    suspect: bool = False
    """A request to it has failed, and it is being asked how it is."""
    restarts: int = 0
    """In a row, without a finished response between them."""
    generation: int = 0
    """Number of the process: what an earlier one's tasks say does not count."""
    progress: float = 0.0
    """Sum of its token counters."""
    progress_at: float = field(default_factory=time.monotonic)
    """When it last got somewhere, or had nothing to do and answered."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.spec.name} ({self.url})" if self.spec else f"server {self.url}"

    @property
    def control(self) -> ServerControl:
        """Its control routes."""
        return ServerControl(self.url, api_key=self.api_key)

    def failure(self, cause: str) -> str:
        """A message about this server, with the end of its log if it is ours."""
        if self.process is not None:
            return self.process.describe(cause)
        return f"vLLM {self.name} {cause}"

    async def look(self, client: httpx.AsyncClient, *, patience_s: float) -> str | None:
        """Asks the server how it is, and notes its progress.

        Args:
            client: For the questions.
            patience_s: Seconds without an answer, or with requests and no token, that are too many.

        Returns:
            What is wrong with it; None if nothing is, or not for so long.
        """
        status = self.process.exit_status() if self.process else None
        if status is not None:
            return f"ended with status {status}"
        try:
            health = await client.get(f"{self.url}/health", timeout=patience_s / 2)
            metrics = await client.get(f"{self.url}/metrics", timeout=patience_s / 2)
        except (httpx.TimeoutException, httpx.RemoteProtocolError, httpx.ReadError):
            # A busy server drops a connection now and then; one that has ended refuses the next.
            return self._too_long(patience_s, "did not answer")
        except httpx.HTTPError as error:
            return f"cannot be reached ({type(error).__name__}: {error})"
        if health.is_error:
            return f"says that it is not well: /health answered {health.status_code}"
        progress = token_count(metrics.text)
        if progress != self.progress or not self.running or self.state is not State.SERVING:
            self.progress, self.progress_at = progress, time.monotonic()
        return self._too_long(patience_s, f"has {len(self.running)} requests and made no token")

    def _too_long(self, patience_s: float, what: str) -> str | None:
        seconds = time.monotonic() - self.progress_at
        if seconds < patience_s:
            return None
        return f"{what} for {seconds:.0f} s (vllm.stall_timeout_s = {patience_s:g})"


def token_count(metrics: str) -> float:
    """Sum of the counters of read and made tokens in a Prometheus text."""
    lines = (line for line in metrics.splitlines() if line.startswith(_PROGRESS))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
