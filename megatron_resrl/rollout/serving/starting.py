"""Makes a server ready for weights and requests: starts or finds it, and sends a first request."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx

from megatron_resrl.errors import RunError
from megatron_resrl.rollout.engine import SamplingParams
from megatron_resrl.rollout.serving.identity import answers_as_ours, served_model, why_not_ready
from megatron_resrl.rollout.serving.pooled_server import PooledServer
from megatron_resrl.rollout.serving.requests import request_body, send_request
from megatron_resrl.rollout.serving.server import ServerProcess, StartFailure
from megatron_resrl.rollout.weight_sync.control import ServerFailure
from megatron_resrl.rollout.weight_sync.receivers import recover

_BETWEEN_QUESTIONS_S = 1.0


def start_process(server: PooledServer, timeout_s: float, gave_up: Callable[[], bool]) -> None:
    """Starts a server that has a specification. Blocks until it is healthy.

    Args:
        server: Its `process` and `url` are set.
        timeout_s: `vllm.start_timeout_s`.
        gave_up: Called at intervals; True: return at once.

    Raises:
        StartFailure: The server ended or took too long.
    """
    assert server.spec is not None
    if gave_up():
        return
    server.process = ServerProcess(server.spec)
    server.url = server.process.url
    server.process.wait_ready(timeout_s, lambda: answers_as_ours(server), gave_up)


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
