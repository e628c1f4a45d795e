"""The servers and the samples that they owe: who gets which, and what happens when one fails.

Everything here runs in one asyncio loop in a thread of global rank 0; the engine's thread waits for
what it needs with `Pool.wait`.
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

from megatron_resrl.config.schema import Recipe
from megatron_resrl.errors import RunError
from megatron_resrl.rollout.engine import Response
from megatron_resrl.rollout.serving.identity import require_model
from megatron_resrl.rollout.serving.jobs import Job, Rollout
from megatron_resrl.rollout.serving.launch import max_model_length
from megatron_resrl.rollout.serving.requests import (
    RequestFailure,
    RequestRefused,
    make_client,
    read_response,
    request_body,
    sample_seed,
    send_request,
)
from megatron_resrl.rollout.serving.server import ServerSpec, StartFailure
from megatron_resrl.rollout.serving.server_state import Slot, State
from megatron_resrl.rollout.serving.starting import await_answer, start_process, warm_up

logger = logging.getLogger(__name__)
T = TypeVar("T")

_LOOKS_PER_PATIENCE = 4
_LONGEST_BETWEEN_LOOKS_S = 5.0


class RolloutFailure(RunError):
    """A sample could not be generated, or no server is left."""

    common = True


class Pool:
    """Servers, the queue of samples, and the loop that brings them together."""

    def __init__(
        self,
        recipe: Recipe,
        specs: Sequence[ServerSpec],
        *,
        seed_requests: bool,
        api_key: str | None,
    ) -> None:
        """Starts the loop; the servers follow with `start`.

        Args:
            recipe: Time-outs, limits, lengths, and the URLs of servers that are not ours.
            specs: Servers to start; empty if `vllm.urls` names some.
            seed_requests: Whether each response has a seed of its own.
            api_key: What servers want to be shown; None: nothing.
        """
        self.vllm = vllm = recipe.vllm
        self.slots = [Slot(spec, api_key=api_key) for spec in specs] or [
            Slot(None, url=url.rstrip("/"), api_key=api_key) for url in vllm.urls
        ]
        self._recipe = recipe
        self._seed_requests = seed_requests
        self._max_length = max_model_length(recipe)
        self._queue: deque[list[Job]] = deque()
        self._error: BaseException | None = None
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._tellers = ThreadPoolExecutor(1, thread_name_prefix="vllm-groups")
        self._starters = ThreadPoolExecutor(len(self.slots), thread_name_prefix="vllm-start")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        self._client: httpx.AsyncClient = self._run(make_client(api_key))

    # Called by the engine, from its thread.

    def start(self) -> Future[None]:
        """Starts all servers.

        Returns:
            Done when they can take weights; with a `StartFailure` if one did not start.
        """
        return asyncio.run_coroutine_threadsafe(self._start_all(), self._loop)

    def submit(self, rollout: Rollout) -> None:
        """Queues the samples of a rollout and returns at once."""
        self._loop.call_soon_threadsafe(self._submit, rollout)

    def wait(self, rollout: Rollout, timeout_s: float) -> None:
        """Returns when the rollout has ended, a server wants weights, or the time is up."""
        with self._changed:
            self._changed.wait_for(lambda: rollout.ended or bool(self.outdated()), timeout_s)

    def outdated(self) -> list[Slot]:
        """Servers that wait for the current weights."""
        return [slot for slot in self.slots if slot.state is State.OUTDATED]

    def hold(self, among: Sequence[State] = (State.SERVING, State.OUTDATED)) -> list[Slot]:
        """Takes servers in one of the states `among` out of the pool's hands; none that starts.

        They keep what they are generating and get nothing new.
        """

        async def hold() -> list[Slot]:
            held = [slot for slot in self.slots if slot.state in among]
            for slot in held:
                slot.state = State.UPDATING
            return held

        return self._run(hold())

    def release(self, slots: Sequence[Slot], version: int, failed: Sequence[str]) -> None:
        """Gives servers back after a transfer of weights.

        Args:
            slots: What `hold` gave.
            version: Of the weights that they have now.
            failed: URLs of those that do not have them; they count as failed.
        """

        async def release() -> None:
            for slot in slots:
                if slot.state is not State.UPDATING:
                    continue  # It failed meanwhile.
                slot.state, slot.version, slot.connected = State.SERVING, version, True
                slot.progress_at = time.monotonic()
                if slot.url in failed:
                    self._fail(slot, "did not take new weights or did not sleep")
            self._dispatch()

        self._run(release())

    def close(self) -> None:
        """Stops our servers and the loop."""
        self._closing.set()
        self._run(self._close())
        self._starters.shutdown(wait=True)
        # Here, in case a start was under way.
        for slot in self.slots:
            if slot.process is not None:
                slot.process.kill()
        self._tellers.shutdown(wait=True, cancel_futures=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it in the loop and waits for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    # From here on: in the loop.

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start_all(self) -> None:
        starts = [self._bring_up(slot) for slot in self.slots]
        for result in await asyncio.gather(*starts, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        for slot in self.slots:
            self._spawn(self._watch(slot))

    async def _bring_up(self, slot: Slot) -> None:
        """Starts a server, or waits for one that is not ours, until it can take weights."""
        start = start_process if slot.spec is not None else await_answer
        timeout, gave_up = self.vllm.start_timeout_s, self._closing.is_set
        await self._loop.run_in_executor(self._starters, start, slot, timeout, gave_up)
        if self._closing.is_set():
            return
        await self._loop.run_in_executor(self._starters, require_model, slot, self._recipe)
        timeout = min(self.vllm.request_timeout_s, timeout)
        await warm_up(slot, self._client, max_length=self._max_length, timeout_s=timeout)
        slot.connected = False
        slot.progress_at = time.monotonic()
        slot.state = State.OUTDATED
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
        """Gives out queued work as long as a server has room for the next prompt's samples."""
        limit = self.vllm.max_running_requests
        while self._queue:
            if self._queue[0][0].rollout.error is not None:
                self._queue.popleft()
                continue
            serving = [
                slot for slot in self.slots if slot.state is State.SERVING and not slot.suspect
            ]
            if not serving:
                return
            slot = min(serving, key=lambda slot: len(slot.running))
            if len(slot.running) + len(self._queue[0]) > limit:
                return
            for job in self._queue.popleft():
                slot.running[self._spawn(self._request(slot, job))] = job

    async def _request(self, slot: Slot, job: Job) -> None:
        """One request, and what becomes of its answer."""
        outcome = await self._ask(slot, job)
        task = asyncio.current_task()
        assert task is not None
        if slot.running.pop(task, None) is None:
            # It was cancelled just as its answer came: the sample is in other hands.
            return
        if isinstance(outcome, Response):
            slot.restarts = 0
            slot.progress_at = time.monotonic()
            if job.rollout.finish(job, outcome):
                self._tell(job.rollout, job.prompt)
        elif isinstance(outcome, RequestFailure):
            logger.info("%s is to be made again: %s: %s", job, slot.name, outcome)
            self._retry([job], slot.failure(str(outcome)))
            if slot.state is State.SERVING and not slot.suspect:
                # Nothing new for it until it has said how it is, or a dead server, which has
                # nothing to do, would be given all samples as often as they may be tried.
                slot.suspect = True
                await self._look_at(slot)
                slot.suspect = False
        else:
            self._end(job.rollout, outcome)
        self._dispatch()

    async def _ask(self, slot: Slot, job: Job) -> Response | RequestFailure | RolloutFailure:
        rollout, version = job.rollout, slot.version
        seed = sample_seed(rollout.key(job)) if self._seed_requests else None
        prompt = rollout.prompts[job.prompt]
        body = request_body(
            prompt, rollout.sampling, model=slot.model, seed=seed, max_length=self._max_length
        )
        try:
            answer = await send_request(
                self._client, slot.url, body, timeout_s=self.vllm.request_timeout_s
            )
            return read_response(answer, rollout.sampling, version)
        except RequestFailure as failure:
            return failure
        except RequestRefused as refusal:
            return RolloutFailure(f"{job}: {slot.name} refused it: {refusal}")
        except (LookupError, TypeError, ValueError) as error:
            cause = f"an answer of an unknown form: {type(error).__name__}: {error}"
            return RolloutFailure(f"{job}: {slot.name} gave {cause}")

    def _retry(self, jobs: list[Job], cause: str) -> None:
        """Queues lost samples of a prompt before all others, or ends their rollout."""
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

    def _tell(self, rollout: Rollout, prompt: int) -> None:
        def then(error: BaseException | None) -> None:
            self._loop.call_soon_threadsafe(self._told, rollout, error)

        self._tellers.submit(rollout.tell, prompt, then)

    def _told(self, rollout: Rollout, error: BaseException | None) -> None:
        rollout.groups_told += 1
        if error is not None:
            self._end(rollout, error)
        self._notify()

    def _end(self, rollout: Rollout, error: BaseException) -> None:
        """Ends a rollout with an error; what servers still do for it is dropped."""
        rollout.error = rollout.error or error
        for slot in self.slots:
            for task, job in list(slot.running.items()):
                if job.rollout is rollout and task is not asyncio.current_task():
                    slot.running.pop(task)
                    task.cancel()
        self._notify()

    async def _watch(self, slot: Slot) -> None:
        """Looks at a server again and again, as long as the pool lives."""
        pause = min(_LONGEST_BETWEEN_LOOKS_S, self.vllm.stall_timeout_s / _LOOKS_PER_PATIENCE)
        while slot.state is not State.GIVEN_UP:
            await asyncio.sleep(pause)
            await self._look_at(slot)

    async def _look_at(self, slot: Slot) -> None:
        generation = slot.generation
        if slot.state in (State.STARTING, State.GIVEN_UP):
            return
        cause = await slot.look(self._client, patience_s=self.vllm.stall_timeout_s)
        if cause is not None and generation == slot.generation:
            self._fail(slot, cause)

    def _fail(self, slot: Slot, cause: str) -> None:
        """Takes a server out: its unfinished samples go back to the queue, and it is restarted."""
        message = slot.failure(cause)
        logger.warning("%s", message)
        slot.state = State.STARTING
        slot.generation += 1
        lost: dict[tuple[int, int], list[Job]] = {}
        for task, job in slot.running.items():
            task.cancel()
            lost.setdefault((id(job.rollout), job.prompt), []).append(job)
        slot.running.clear()
        for jobs in reversed(lost.values()):
            self._retry(jobs, message)
        self._spawn(self._bring_back(slot, message))
        self._dispatch()

    async def _bring_back(self, slot: Slot, cause: str) -> None:
        """Restarts a failed server, or waits for one that is not ours."""
        while not self._closing.is_set():
            if slot.process is not None:
                await self._loop.run_in_executor(self._starters, slot.process.kill)
            if slot.restarts == self.vllm.max_restarts:
                self._give_up(slot, cause)
                return
            slot.restarts += 1
            logger.warning("vLLM %s: restart %d", slot.name, slot.restarts)
            try:
                await self._bring_up(slot)
                return
            except StartFailure as failure:
                cause = str(failure)
                logger.warning("%s", cause)

    def _give_up(self, slot: Slot, cause: str) -> None:
        slot.state = State.GIVEN_UP
        message = f"failed {slot.restarts + 1} times in a row (vllm.max_restarts): {cause}"
        if any(other.state is not State.GIVEN_UP for other in self.slots):
            logger.error("vLLM %s is left out from now on: it %s", slot.name, message)
            return
        self._error = RolloutFailure(f"no vLLM server is left: {slot.name} {message}")
        for rollout in {
            id(job.rollout): job.rollout for unit in self._queue for job in unit
        }.values():
            self._end(rollout, self._error)
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    async def _close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()
        stops: list[Callable[[], None]] = [
            slot.process.stop for slot in self.slots if slot.process is not None
        ]
        await asyncio.gather(*(self._loop.run_in_executor(None, stop) for stop in stops))
