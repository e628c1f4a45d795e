"""The engine that samples with vLLM servers: the collective side of `pool`."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import wait as wait_for_futures
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from megatron_resrl.config.schema_rollout import VllmConfig
from megatron_resrl.platform.distributed import broadcast_object, gather_objects
from megatron_resrl.platform.phases import progress
from megatron_resrl.rollout.engine import (
    DeferredRollout,
    GenerationRequest,
    PendingRollout,
    Response,
    RolloutEngine,
)
from megatron_resrl.rollout.serving.jobs import Rollout
from megatron_resrl.rollout.serving.needed_model import NeededModel
from megatron_resrl.rollout.serving.nodes.fleet import ServerSettings, assemble
from megatron_resrl.rollout.serving.pool import Pool
from megatron_resrl.rollout.serving.pooled_server import PooledServer, ServerState
from megatron_resrl.rollout.weight_sync.control import ServerControl, ServerFailure

HEARTBEAT_INTERVAL_S = 10.0
"""Seconds after which rank 0 broadcasts that nothing has changed: the collective in which the other
ranks wait would time out before a long rollout ends."""


class SyncResult(Protocol):
    """What a transfer of weights says of itself."""

    @property
    def seconds(self) -> float:
        """From the first call until the last server resumed."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights that each server has now."""
        ...

    @property
    def sent_bytes(self) -> int:
        """Bytes that each server got for it."""
        ...

    @property
    def changed_fraction(self) -> float | None:
        """Share of the weights' bytes that differ from those sent before; None: not compared."""
        ...

    @property
    def failed(self) -> tuple[str, ...]:
        """URLs of servers that do not have the weights."""
        ...


class Sender(Protocol):
    """Brings the policy's weights to servers; both calls are collective over all ranks."""

    def connect(self, servers: Sequence[ServerControl]) -> None:
        """Prepares new or restarted servers; ranks other than 0 pass none."""
        ...

    def send(self, servers: Sequence[ServerControl], version: int) -> SyncResult:
        """Sends the weights as they are; ranks other than 0 pass none."""
        ...

    def close(self) -> None:
        """Ends connections."""
        ...


@dataclass(frozen=True)
class _RolloutStatus:
    """What rank 0 broadcasts while all ranks wait for a rollout."""

    outdated: bool = False
    """Servers wait for the current weights."""
    error: BaseException | None = None
    groups: list[list[Response]] | None = None
    """All responses; the wait is over."""


class VllmEngine(RolloutEngine):
    """Samples with vLLM servers, which rank 0 watches and speaks to; see `fleet` for their start.

    Sample j of prompt i is drawn with a seed keyed by (*seed, i, j) if `vllm.seed_requests`; the
    tokens may still depend on what else a server computes at that time, through rounding. Without
    seeds they are the server's own.
    """

    def __init__(
        self,
        model: NeededModel,
        vllm: VllmConfig,
        sender: Sender,
        *,
        colocated: bool,
        output_dir: Path,
        weight_flags: tuple[Sequence[str], Mapping[str, str]] = ((), {}),
    ) -> None:
        """Starts the servers and gives them the policy's weights. Collective.

        Args:
            model: That the servers serve.
            vllm: The servers.
            sender: Brings weights to servers; closed with the engine.
            colocated: Servers share the trainer's GPUs, and sleep while it trains.
            output_dir: Of the run; servers write their logs below it.
            weight_flags: Arguments and environment that servers need for it.

        Raises:
            InputError: On every rank: the servers cannot be started as the recipe says.
            RunError: On every rank, if a server does not start.
        """
        self.sender = sender
        self.version = 0
        cuda = torch.cuda.is_available()
        self._can_sleep = cuda and colocated
        self._asleep = False
        self._pool: Pool | None = None
        self._fleet = assemble(
            ServerSettings(model, vllm, output_dir, colocated=colocated, weight_flags=weight_flags)
        )
        if dist.get_rank() == 0:
            seeds = vllm.seed_requests
            self._pool = Pool(
                vllm,
                self._fleet.servers,
                model,
                seed_requests=cuda if seeds is None else seeds,
            )
        self._fleet.begin()
        self._await_start()

    def begin(self, request: GenerationRequest) -> PendingRollout:
        """See `RolloutEngine.begin`; the servers work while the caller goes on.

        Servers without weights (new, restarted, asleep) get the policy's first. A server that is
        restarted later waits for the next `result` or `update_weights`; call `update_weights`
        before `result` if the policy has changed since.
        """
        self._bring_up_to_date()
        rollout = Rollout(request)
        if self._pool is not None:
            self._pool.submit(rollout)
        return DeferredRollout(lambda: self._await_groups(rollout))

    def update_weights(self, version: int) -> dict[str, float]:
        """See `RolloutEngine.update_weights`; servers that are being restarted get them later."""
        self.version = version
        return self._send((ServerState.SERVING, ServerState.OUTDATED, ServerState.UPDATING))

    def sleep(self) -> None:
        """Has servers on shared GPUs free their memory until the next weights; else nothing."""
        if not self._can_sleep:
            return
        self._asleep = True
        if self._pool is None:
            return
        awake = []
        for server in self._pool.hold():
            try:
                # Level 2 gives the weights up, too: they come again with the next sync.
                server.control.post("/sleep", params={"level": 2})
            except ServerFailure:
                awake.append(server)
        self._pool.release(awake, self.version, tuple(server.url for server in awake))

    def close(self) -> None:
        """See `RolloutEngine.close`: ends our servers."""
        self.sender.close()
        if self._pool is not None:
            self._pool.close()
        self._fleet.close()

    def _await_groups(self, rollout: Rollout) -> list[list[Response]]:
        """Waits for a rollout, and meanwhile gives restarted servers the weights. Collective.

        Raises:
            RunError: On every rank, if a response cannot be generated.
        """
        while True:
            status: _RolloutStatus = broadcast_object(self._status(rollout))
            if status.error is not None:
                raise status.error
            if status.groups is not None:
                return status.groups
            if status.outdated:
                self._send((ServerState.OUTDATED,))

    def _status(self, rollout: Rollout) -> _RolloutStatus | None:
        """On rank 0: waits until the status changes, or for `HEARTBEAT_INTERVAL_S`."""
        pool = self._pool
        if pool is None:
            return None
        progress(rollout.finished, rollout.total)
        pool.wait(rollout, HEARTBEAT_INTERVAL_S)
        if rollout.error is not None:
            return _RolloutStatus(error=rollout.error)
        if rollout.ended:
            return _RolloutStatus(groups=rollout.groups())
        return _RolloutStatus(outdated=bool(pool.outdated()))

    def _bring_up_to_date(self) -> None:
        """Sends weights to the servers that have none, if there are such."""
        outdated = self._asleep or bool(self._pool is not None and self._pool.outdated())
        if broadcast_object(outdated):
            self._send(
                (ServerState.UPDATING, ServerState.OUTDATED)
                if self._asleep
                else (ServerState.OUTDATED,)
            )

    def _send(self, among: Sequence[ServerState]) -> dict[str, float]:
        """Gives servers in one of the states `among` the policy's weights. Collective."""
        servers = self._pool.hold(among) if self._pool is not None else []
        if self._asleep:
            _give_back_memory()
        awake = [server for server in servers if self._wake(server)]
        controls = [server.control for server in awake]
        for control in controls:
            control.cache_sleeps = self._asleep
        new = [
            control for server, control in zip(awake, controls, strict=True) if not server.connected
        ]
        if broadcast_object(bool(new)):
            self.sender.connect(new)
        started = time.monotonic()
        report = self.sender.send(controls, self.version)
        failed = {server.url for server in servers if server not in awake} | set(report.failed)
        self._asleep = False
        if self._pool is not None:
            self._pool.release(servers, self.version, tuple(failed))
        seconds = report.seconds or time.monotonic() - started
        numbers = {
            "sync/seconds": seconds,
            "sync/gb_per_s": report.num_bytes / 1e9 / seconds,
            "sync/bytes": float(report.sent_bytes),
            "sync/servers": float(len(servers) - len(failed)),
            "sync/failed_servers": float(len(failed)),
        }
        if report.changed_fraction is not None:
            numbers["sync/changed_fraction"] = report.changed_fraction
        return broadcast_object(numbers)

    def _wake(self, server: PooledServer) -> bool:
        """Has a sleeping server make room for weights. Returns whether it did.

        Its keys and values follow when the weights are there, see `finish_update`: both at once
        would need their memory while the trainer still holds a copy of the weights.
        """
        if not self._asleep:
            return True
        try:
            server.control.post("/wake_up", params={"tags": "weights"})
        except ServerFailure:
            return False
        return True

    def _await_start(self) -> None:
        """Waits for the servers; where one does not start, ends the others and raises on all."""
        started = self._pool.start() if self._pool is not None else None
        ready, error = False, None
        while not ready:
            if started is not None:
                wait_for_futures([started], HEARTBEAT_INTERVAL_S)
                ready = started.done()
                error = started.exception() if ready else None
            ready, error = broadcast_object((ready, error))
        if error is not None:
            self.close()
            raise error


def _give_back_memory() -> None:
    """Has every rank return to its GPU what its allocator keeps for later. Collective."""
    gc.collect()
    torch.cuda.empty_cache()  # Does nothing without CUDA.
    gather_objects(None)  # Until all have.
