"""The servers and the queue of samples: assigns samples to servers and handles failures.

Everything here runs in one asyncio loop in a thread of global rank 0; the engine's thread waits
with `Pool.wait`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import httpx

from megatron_resrl.config.schema import VllmConfig
from megatron_resrl.errors import RunError
from megatron_resrl.rollout.engine import Response
from megatron_resrl.rollout.serving.identity import require_model
from megatron_resrl.rollout.serving.jobs import Job, Rollout
from megatron_resrl.rollout.serving.needed_model import NeededModel
from megatron_resrl.rollout.serving.pooled_server import PooledServer, ServerState, least_busy
from megatron_resrl.rollout.serving.requests import (
    RequestFailure,
    RequestRefused,
    make_client,
    read_response,
    request_body,
    sample_seed,
    send_request,
)
from megatron_resrl.rollout.serving.server import StartFailure
from megatron_resrl.rollout.serving.starting import NodeAbsent, await_answer, start_process, warm_up

logger = logging.getLogger(__name__)
T = TypeVar("T")

_PROBES_PER_STALL_TIMEOUT = 4
_LONGEST_BETWEEN_PROBES_S = 5.0


class RolloutFailure(RunError):
    """A sample could not be generated, or no server is left."""

    common = True


class Pool:
    """Servers, the queue of samples, and the loop that brings them together."""

    def __init__(
        self,
        vllm: VllmConfig,
        servers: Sequence[PooledServer],
        model: NeededModel,
        *,
        seed_requests: bool,
    ) -> None:
        """Starts the loop; the servers follow with `start`.

        Args:
            vllm: Time-outs and limits.
            servers: To be started, or running already; all want the same key.
            model: What servers must serve.
            seed_requests: Whether each request carries its own seed.
        """
        self.vllm = vllm
        self.servers = list(servers)
        self._model = model
        self._seed_requests = seed_requests
        self._queue: deque[list[Job]] = deque()
        self._error: BaseException | None = None
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._callback_executor = ThreadPoolExecutor(1, thread_name_prefix="vllm-groups")
        self._starters = ThreadPoolExecutor(len(self.servers), thread_name_prefix="vllm-start")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        self._client: httpx.AsyncClient = self._run(make_client(servers[0].api_key))

    # Called from the engine's thread.

    def start(self) -> Future[None]:
        """Starts all servers.

        Returns:
            A future that is done when all servers can take weights; it raises `StartFailure` if a
            server did not start.
        """
        return asyncio.run_coroutine_threadsafe(self._start_all(), self._loop)

    def submit(self, rollout: Rollout) -> None:
        """Queues the samples of a rollout and returns at once."""
        self._loop.call_soon_threadsafe(self._submit, rollout)

    def wait(self, rollout: Rollout, timeout_s: float) -> None:
        """Returns when the rollout has ended, a server waits for weights, or the time is up."""
        with self._changed:
            self._changed.wait_for(lambda: rollout.ended or bool(self.outdated()), timeout_s)

    def outdated(self) -> list[PooledServer]:
        """Servers that wait for the current weights."""
        return [server for server in self.servers if server.state is ServerState.OUTDATED]

    def hold(
        self, among: Sequence[ServerState] = (ServerState.SERVING, ServerState.OUTDATED)
    ) -> list[PooledServer]:
        """Reserves the servers in one of the states `among` for the caller, until `release`.

        The servers keep their requests in flight and get no new samples.
        """

        async def hold() -> list[PooledServer]:
            servers = [server for server in self.servers if server.state in among]
            for server in servers:
                server.state = ServerState.UPDATING
            return servers

        return self._run(hold())

    def release(self, servers: Sequence[PooledServer], version: int, failed: Sequence[str]) -> None:
        """Gives servers back after a transfer of weights.

        Args:
            servers: From `hold`.
            version: Version of the weights that the servers have now.
            failed: URLs of servers that did not get the weights; these servers count as failed.
        """

        async def release() -> None:
            for server in servers:
                if server.state is not ServerState.UPDATING:
                    continue  # The server failed meanwhile.
                server.state, server.version, server.connected = ServerState.SERVING, version, True
                server.progress_at = time.monotonic()
                if server.url in failed:
                    self._fail(server, "did not take new weights or did not sleep")
            self._dispatch()

        self._run(release())

    def close(self) -> None:
        """Stops the servers that this run started, and the loop."""
        self._closing.set()
        self._run(self._close())
        self._starters.shutdown(wait=True)
        # After the starters, in case a server was being started.
        for server in self.servers:
            if server.process is not None:
                server.process.kill()
        self._callback_executor.shutdown(wait=True, cancel_futures=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the loop and waits for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    # The methods below run in the loop.

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start_all(self) -> None:
        starts = [self._bring_up(server) for server in self.servers]
        for result in await asyncio.gather(*starts, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        for server in self.servers:
            self._spawn(self._watch(server))

    async def _bring_up(self, server: PooledServer) -> None:
        """Starts a server, or waits for an external one, until it can take weights."""
        start = start_process if server.spec is not None else await_answer
        timeout, gave_up = self.vllm.start_timeout_s, self._closing.is_set
        await self._loop.run_in_executor(self._starters, start, server, timeout, gave_up)
        if self._closing.is_set():
            return
        await self._loop.run_in_executor(self._starters, require_model, server, self._model)
        timeout = min(self.vllm.request_timeout_s, timeout)
        await warm_up(server, self._client, max_length=self._model.max_length, timeout_s=timeout)
        server.connected = False
        server.progress_at = time.monotonic()
        server.state = ServerState.OUTDATED
        self._notify()

    def _submit(self, rollout: Rollout) -> None:
        if self._error is not None:
            rollout.error = self._error
            self._notify()
            return
        self._queue.extend(rollout.units(self.vllm.max_running_requests))
        self._dispatch()
        self._notify()

    def _dispatch(self) -> None:
        """Sends queued samples while a server has room for the samples of the next prompt."""
        limit = self.vllm.max_running_requests
        while self._queue:
            if self._queue[0][0].rollout.error is not None:
                self._queue.popleft()
                continue
            server = least_busy(self.servers)
            if server is None or len(server.running) + len(self._queue[0]) > limit:
                return
            for job in self._queue.popleft():
                server.running[self._spawn(self._request(server, job))] = job

    async def _request(self, server: PooledServer, job: Job) -> None:
        """Sends one request and handles its outcome."""
        outcome = await self._ask(server, job)
        task = asyncio.current_task()
        assert task is not None
        if server.running.pop(task, None) is None:
            # The task was cancelled just as the answer came: the sample has been queued again.
            return
        if isinstance(outcome, Response):
            server.restarts = 0
            server.responses += 1
            server.progress_at = time.monotonic()
            if job.rollout.finish(job, outcome):
                self._spawn(self._report_group(job.rollout, job.prompt))
        elif isinstance(outcome, RequestFailure):
            logger.info("%s is queued again: %s: %s", job, server.name, outcome)
            self._retry([job], server.failure(str(outcome)))
            if server.state is ServerState.SERVING and not server.needs_probe:
                # Probed before it gets more work: otherwise an idle dead server would take every
                # sample until its retries are used up.
                server.needs_probe = True
                await self._probe(server)
                server.needs_probe = False
        else:
            self._end(job.rollout, outcome)
        self._dispatch()

    async def _ask(
        self, server: PooledServer, job: Job
    ) -> Response | RequestFailure | RolloutFailure:
        rollout, request, version = job.rollout, job.rollout.request, server.version
        seed = sample_seed(rollout.key(job)) if self._seed_requests else None
        body = request_body(
            request.prompts[job.prompt],
            request.sampling,
            model=server.model,
            seed=seed,
            max_length=self._model.max_length,
        )
        try:
            answer = await send_request(
                self._client, server.url, body, timeout_s=self.vllm.request_timeout_s
            )
            return read_response(answer, request.sampling, version)
        except RequestFailure as failure:
            return failure
        except RequestRefused as refusal:
            return RolloutFailure(f"{job}: {server.name} refused it: {refusal}")
        except (LookupError, TypeError, ValueError) as error:
            cause = f"an answer of an unknown form: {type(error).__name__}: {error}"
            return RolloutFailure(f"{job}: {server.name} gave {cause}")

    def _retry(self, jobs: list[Job], cause: str) -> None:
        """Puts lost samples of a prompt at the head of the queue, or ends their rollout."""
        for job in jobs:
            job.failures += 1
        job = max(jobs, key=lambda job: job.failures)
        if job.failures <= self.vllm.max_retries:
            self._queue.appendleft(jobs)
            return
        self._end(
            job.rollout,
            RolloutFailure(
                f"{job} was lost {job.failures} times (vllm.max_retries = "
                f"{self.vllm.max_retries}), last because {cause}"
            ),
        )

    async def _report_group(self, rollout: Rollout, prompt: int) -> None:
        """Calls `on_group` for a complete group, in a thread of its own: it may wait for files."""
        error = await self._loop.run_in_executor(self._callback_executor, rollout.report, prompt)
        rollout.reported_groups += 1
        if error is not None:
            self._end(rollout, error)
        self._notify()

    def _end(self, rollout: Rollout, error: BaseException) -> None:
        """Ends a rollout with an error and cancels its requests."""
        rollout.error = rollout.error or error
        for server in self.servers:
            for task, job in list(server.running.items()):
                if job.rollout is rollout and task is not asyncio.current_task():
                    server.running.pop(task)
                    task.cancel()
        self._notify()

    async def _watch(self, server: PooledServer) -> None:
        """Probes a server at intervals until the server is given up."""
        pause = min(
            _LONGEST_BETWEEN_PROBES_S, self.vllm.stall_timeout_s / _PROBES_PER_STALL_TIMEOUT
        )
        while server.state is not ServerState.GIVEN_UP:
            await asyncio.sleep(pause)
            await self._probe(server)

    async def _probe(self, server: PooledServer) -> None:
        generation = server.generation
        if server.state in (ServerState.STARTING, ServerState.GIVEN_UP):
            return
        cause = await server.check_health(self._client, stall_timeout_s=self.vllm.stall_timeout_s)
        if cause is not None and generation == server.generation:
            self._fail(server, cause)

    def _fail(self, server: PooledServer, cause: str) -> None:
        """Queues the unfinished samples of a server again and restarts the server."""
        message = server.failure(cause)
        logger.warning("%s", message)
        server.state = ServerState.STARTING
        server.generation += 1
        lost: dict[tuple[int, int], list[Job]] = {}
        for task, job in server.running.items():
            task.cancel()
            lost.setdefault((id(job.rollout), job.prompt), []).append(job)
        server.running.clear()
        for jobs in reversed(lost.values()):
            self._retry(jobs, message)
        self._spawn(self._bring_back(server, message))
        self._dispatch()

    async def _bring_back(self, server: PooledServer, cause: str) -> None:
        """Restarts a failed server, or waits for an external one."""
        while not self._closing.is_set():
            if server.process is not None:
                await self._loop.run_in_executor(self._starters, server.process.kill)
            if server.restarts == self.vllm.max_restarts:
                self._give_up(server, cause)
                return
            server.restarts += 1
            logger.warning("vLLM %s: restart %d", server.name, server.restarts)
            try:
                await self._bring_up(server)
                logger.warning("vLLM %s is back", server.name)
                return
            except NodeAbsent as failure:
                cause = str(failure)
                if failure.waited and not self._others_may_work(server):
                    self._give_up(server, cause)
                    return
                server.restarts -= 1  # Its node failed, and not the server.
            except StartFailure as failure:
                cause = str(failure)
                logger.warning("%s", cause)

    def _others_may_work(self, server: PooledServer) -> bool:
        """Whether another server runs, or is being started on a node that is there."""
        return any(
            other.state is not ServerState.GIVEN_UP and not other.waits_for_node
            for other in self.servers
            if other is not server
        )

    def _give_up(self, server: PooledServer, cause: str) -> None:
        server.state = ServerState.GIVEN_UP
        message = f"failed {server.restarts + 1} times in a row (vllm.max_restarts): {cause}"
        if any(other.state is not ServerState.GIVEN_UP for other in self.servers):
            logger.error("vLLM %s is left out from now on: it %s", server.name, message)
            return
        self._error = RolloutFailure(f"no vLLM server is left: {server.name} {message}")
        for rollout in {
            id(job.rollout): job.rollout for unit in self._queue for job in unit
        }.values():
            self._end(rollout, self._error)
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    async def _close(self) -> None:
        answered = (f"{server.name} {server.responses}" for server in self.servers)
        logger.info("responses of each server: %s", ", ".join(answered))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()
        stops: list[Callable[[], None]] = [
            server.process.stop for server in self.servers if server.process is not None
        ]
        await asyncio.gather(*(self._loop.run_in_executor(None, stop) for stop in stops))
