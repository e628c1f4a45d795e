"""Makes a server ready for weights and requests: starts or finds it, and sends a first request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import httpx

from megatron_resrl.errors import RunError
from megatron_resrl.rollout.engine import SamplingParams
from megatron_resrl.rollout.serving.identity import answers_as_ours, served_model, why_not_ready
from megatron_resrl.rollout.serving.pooled_server import PooledServer
from megatron_resrl.rollout.serving.requests import request_body, send_request
from megatron_resrl.rollout.serving.server import RunningServer, StartFailure
from megatron_resrl.rollout.weight_sync.control import ServerFailure
from megatron_resrl.rollout.weight_sync.receivers import recover

logger = logging.getLogger(__name__)

_BETWEEN_QUESTIONS_S = 1.0
_POLL_S = 0.2
_PORTS_TRIED = 5


class PortTaken(StartFailure):
    """Another process listened at the server's port before the server did."""


class NodeAbsent(StartFailure):
    """The node that a server is to be started on is not there."""

    waited: bool = False
    """Whether it was waited for as long as a start may take."""


def start_process(server: PooledServer, timeout_s: float, gave_up: Callable[[], bool]) -> None:
    """Starts a server that has a specification. Blocks until it is healthy.

    A server whose port another process has taken is started again, at another port.

    Args:
        server: Its `process` and `url` are set.
        timeout_s: `vllm.start_timeout_s`.
        gave_up: Called at intervals; True: return at once.

    Raises:
        StartFailure: The server ended or took too long.
        NodeAbsent: So did its node.
    """
    assert server.spec is not None
    for attempt in range(1, _PORTS_TRIED + 1):
        if gave_up():
            return
        server.process = process = server.spec.start()

        def answers(process: RunningServer = process) -> bool:
            server.url = process.url
            return bool(process.url) and answers_as_ours(server)

        try:
            wait_ready(process, timeout_s, answers, gave_up)
            return
        except PortTaken as failure:
            if attempt == _PORTS_TRIED:
                raise
            logger.warning("%s: its port is taken, it is started at another", server.name)
            logger.info("%s", failure)


def wait_ready(
    process: RunningServer,
    timeout_s: float,
    answers: Callable[[], bool],
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Returns when a server answers and its process lives.

    Another server may listen at the port, and may answer while our server is about to end.

    Args:
        process: A server that was just started.
        timeout_s: Seconds that the start may take from now on.
        answers: Whether our server answers.
        cancelled: Ends the wait early, without an error.

    Raises:
        PortTaken: The process ended because it could not listen at its port.
        NodeAbsent: The server's node is missing, or was lost while the server started.
        StartFailure: The process ended or the time is up. In all cases the process is killed.
    """
    deadline = time.monotonic() + timeout_s
    while not cancelled():
        answered = answers()
        if cause := process.why_ended():
            message = process.describe(f"{cause} while it started")
            process.kill()
            if process.waits_for():
                raise NodeAbsent(message)
            raise PortTaken(message) if process.port_was_taken() else StartFailure(message)
        if answered:
            return
        if time.monotonic() > deadline:
            missing = process.waits_for()
            message = process.describe(
                f"was not ready after vllm.start_timeout_s = {timeout_s:g} s"
            )
            process.kill()
            if missing is None:
                raise StartFailure(message)
            absent = NodeAbsent(missing)
            absent.waited = True
            raise absent
        time.sleep(_POLL_S)


def await_answer(server: PooledServer, timeout_s: float, gave_up: Callable[[], bool]) -> None:
    """Waits for a server that this run did not start. Blocks until it is healthy and not paused.

    Args:
        server: Its `url` is set.
        timeout_s: `vllm.start_timeout_s`.
        gave_up: Called at intervals; True: return at once.

    Raises:
        StartFailure: There was no answer in time, or another kind of server answered.
    """
    deadline = time.monotonic() + timeout_s
    while cause := why_not_ready(server.url, server.api_key):
        if gave_up():
            return
        if time.monotonic() > deadline:
            raise StartFailure(
                f"vllm.urls: {server.url}/health did not answer within vllm.start_timeout_s = "
                f"{timeout_s:g} s ({cause}); start the server or correct the address"
            )
        time.sleep(_BETWEEN_QUESTIONS_S)
    served_model(server.control)
    try:
        recover(server.control)
    except ServerFailure as failure:
        raise StartFailure(
            f"vllm.urls: {server.url} cannot be controlled ({failure}); start it with "
            "VLLM_SERVER_DEV_MODE=1"
        ) from failure


async def warm_up(
    server: PooledServer, client: httpx.AsyncClient, *, max_length: int, timeout_s: float
) -> None:
    """Has the server generate one token.

    The first request of a server compiles kernels for up to a quarter of a minute, which must not
    look like a stall; and a server that lacks a needed flag fails here.

    Args:
        server: Its `model` is known.
        client: Sends the request.
        max_length: Tokens of a prompt and its response together.
        timeout_s: Seconds that the request may take.

    Raises:
        StartFailure: The request failed.
    """
    try:
        sampling = SamplingParams(1, ())
        body = request_body([0], sampling, model=server.model, seed=None, max_length=max_length)
        await send_request(client, server.url, body, timeout_s=timeout_s)
    except (RunError, httpx.HTTPError, ValueError) as error:
        raise StartFailure(server.failure(f"did not answer its first request: {error}")) from error
