"""One sample as a request: token ids in, token ids and log-probs out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np

from megatron_resrl.errors import RunError
from megatron_resrl.rollout.engine import Response, SamplingParams
from megatron_resrl.rollout.weight_sync.control import authorization, shortened

ROUTE = "/inference/v1/generate"
"""vLLM's token-in, token-out route (`--enable-scale-out`)."""


_NO_LOG_PROB = -9999.0


class RequestFailure(RunError):
    """A request got no answer in time or a server error; another attempt may succeed."""


class RequestRefused(RunError):
    """A server refused the request as invalid; every server would."""


def sample_seed(key: Sequence[int]) -> int:
    """The seed of one response, 63 bits, from its name: (*seed, prompt, sample)."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def request_body(
    prompt: Sequence[int],
    sampling: SamplingParams,
    *,
    model: str | None,
    seed: int | None,
    max_length: int,
) -> dict[str, Any]:
    """The request for one response.

    Args:
        prompt: Token ids.
        sampling: How tokens are sampled; `n` is ignored.
        model: The name under which the server knows the model; None: whatever it serves.
        seed: Seed of this response; None: the server uses its own random state.
        max_length: Tokens that the server takes, prompt and response together; in later turns the
            prompt contains the turns before.
    """
    parameters: dict[str, Any] = {
        "max_tokens": min(sampling.max_new_tokens, max_length - len(prompt)),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop_token_ids": list(sampling.stop_token_ids),
        # Only our stop tokens end a response, not what the model's configuration names.
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }
    if seed is not None:
        parameters["seed"] = seed
    body: dict[str, Any] = {"token_ids": list(prompt), "sampling_params": parameters}
    return body if model is None else body | {"model": model}


async def make_client(api_key: str | None = None) -> httpx.AsyncClient:
    """A client for generation requests and health checks, bound to the running loop.

    Args:
        api_key: Key that the servers require; None: none.

    Each request has a connection of its own: a server may close an idle connection at any time,
    and a connection that is closed just as it is used again looks like a dead server.
    """
    # The pool's queue limits the requests, so connections need no limit; no proxy is used.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    headers = authorization(api_key)
    return httpx.AsyncClient(limits=limits, headers=headers, timeout=None, trust_env=False)


async def send_request(
    client: httpx.AsyncClient, url: str, body: Mapping[str, Any], *, timeout_s: float
) -> Any:
    """Posts a request and waits for the whole answer.

    Raises:
        RequestFailure: No answer within `timeout_s`, a broken connection, or a server error.
        RequestRefused: The server refused the request as invalid.
    """
    where = f"POST {url}{ROUTE}"
    try:
        answer = await asyncio.wait_for(client.post(url + ROUTE, json=body), timeout_s)
    except TimeoutError as error:
        cause = f"{where} was not answered within vllm.request_timeout_s = {timeout_s:g} s"
        raise RequestFailure(cause) from error
    except httpx.HTTPError as error:
        raise RequestFailure(f"{where} failed: {type(error).__name__}: {error}") from error
    if answer.status_code >= 500:
        raise RequestFailure(f"{where} answered {answer.status_code}: {shortened(answer.text)}")
    if not answer.is_success:
        raise RequestRefused(f"{where} answered {answer.status_code}: {shortened(answer.text)}")
    return answer.json()


def read_response(answer: Any, sampling: SamplingParams, version: int) -> Response:
    """The response in a server's answer.

    Args:
        answer: Decoded JSON.
        sampling: The requested sampling.
        version: Version of the weights at the time of the request, used if the answer names none.

    Raises:
        RequestFailure: The server aborted the request, or the answer does not fit the request.
    """
    choice = answer["choices"][0]
    tokens = tuple(choice["token_ids"] or ())
    reason = choice["finish_reason"]
    if reason not in ("stop", "length") or not tokens:
        raise RequestFailure(f"the response ended with {reason!r} after {len(tokens)} tokens")
    stopped = tokens[-1] in sampling.stop_token_ids
    if (reason == "stop") != stopped:
        raise RequestFailure(
            f"the response ended with {reason!r} at token {tokens[-1]}; stop tokens are "
            f"{sampling.stop_token_ids}"
        )
    log_probs = tuple(_log_prob(entry["logprob"]) for entry in choice["logprobs"]["content"])
    if len(log_probs) != len(tokens):
        raise RequestFailure(f"{len(tokens)} tokens came with {len(log_probs)} log-probs")
    return Response(
        tokens, log_probs, reason, weight_versions=_versions(choice.get("weight_versions"), version)
    )


def _log_prob(written: float | None) -> float:
    """Log-probability of a generated token, NaN where the server had none.

    vLLM writes -9999.0 for NaN and for smaller values, older versions write null; no token can be
    sampled with such a probability.
    """
    return math.nan if written is None or written <= _NO_LOG_PROB else float(written)


def _versions(spans: Sequence[Mapping[str, Any]] | None, version: int) -> tuple[int, int]:
    """Versions of the first and the last token; a server without weights of a trainer says
    `default`."""
    labels = [span["version"] for span in spans or ()]
    if not labels or not all(label.isdigit() for label in labels):
        return version, version
    return int(labels[0]), int(labels[-1])
