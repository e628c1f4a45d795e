"""Identifies the server at an address: the one started here, another usable vLLM, or neither."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

import httpx

from megatron_resrl.errors import InputError
from megatron_resrl.rollout.serving.launch import MODEL_NAME
from megatron_resrl.rollout.serving.needed_model import NeededModel
from megatron_resrl.rollout.serving.pooled_server import PooledServer
from megatron_resrl.rollout.serving.server import StartFailure
from megatron_resrl.rollout.weight_sync.control import (
    ServerControl,
    ServerFailure,
    authorization,
    shortened,
)

_QUESTION_S = 5.0
_REFUSED = (401, 403)


class WrongServer(StartFailure, InputError):
    """The server at an address cannot be used as it is."""


@dataclass(frozen=True)
class ServedModel:
    """What a vLLM server reports about its model."""

    name: str
    path: str
    """From where the server loaded the model."""
    max_length: int
    """Tokens of a prompt and its response together."""


def why_not_ready(url: str, api_key: str | None) -> str | None:
    """Asks a server for its health.

    Returns:
        Why the server is not ready yet; None: it is ready.

    Raises:
        WrongServer: The address belongs to something other than a starting vLLM server.
    """
    where = f"{url}/health"
    try:
        answer = httpx.get(
            where, headers=authorization(api_key), timeout=_QUESTION_S, trust_env=False
        )
    except httpx.RemoteProtocolError as error:
        if "disconnected" in str(error):
            return f"{type(error).__name__}: {error}"
        raise WrongServer(_no_vllm(url, f"GET {where}: no HTTP, {error}")) from error
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    said = f"GET {where} answered {answer.status_code}: {shortened(answer.text)}"
    if answer.status_code in _REFUSED:
        raise WrongServer(_wants_key(url, said))
    if answer.status_code >= 500:
        return said
    if not answer.is_success:
        raise WrongServer(_no_vllm(url, said))
    return None


def answers_as_ours(server: PooledServer) -> bool:
    """Whether a started server answers at its address.

    Another server that has taken the port does not know the name of our model.
    """
    assert server.spec is not None
    try:
        return not why_not_ready(server.url, server.api_key) and (
            served_model(server.control).name == server.spec.model
        )
    except StartFailure:
        return False


def served_model(control: ServerControl) -> ServedModel:
    """The model that a server reports.

    Raises:
        WrongServer: The server requires a key, or is no vLLM server.
        StartFailure: The server does not answer.
    """
    try:
        answer = control.get("/v1/models")
    except ServerFailure as failure:
        if failure.answered in _REFUSED:
            raise WrongServer(_wants_key(control.url, str(failure))) from failure
        if failure.answered is None or failure.answered >= 500:
            raise StartFailure(f"vllm.urls: {failure}") from failure
        raise WrongServer(_no_vllm(control.url, str(failure))) from failure
    said = f"GET {control.url}/v1/models answered {shortened(str(answer))}"
    try:
        card = answer["data"][0]
        known = ServedModel(card["id"], card["root"] or card["id"], card["max_model_len"])
        named = isinstance(known.name, str) and isinstance(known.path, str)
        if card["owned_by"] == "vllm" and named and isinstance(known.max_length, int):
            return known
    except (LookupError, TypeError):
        pass
    raise WrongServer(_no_vllm(control.url, said))


def require_model(server: PooledServer, needed: NeededModel) -> None:
    """Stores the name of a server's model after checking that the model fits. Blocks.

    Args:
        server: A server that is ready; `server.model` is set to the name.
        needed: Model and lengths.

    Raises:
        WrongServer: The server has another model, or its context is too short.
        StartFailure: The server does not answer.
    """
    served = served_model(server.control)
    if served.max_length < needed.max_length:
        remedy = (
            f"start it with --max-model-len {needed.max_length}"
            if server.spec is None
            else "remove max-model-len from vllm.arguments"
        )
        raise WrongServer(
            f"vLLM {server.name} takes {served.max_length} tokens (max_model_len), and "
            f"data.max_prompt_length {needed.max_prompt_length} + rollout.max_response_length "
            f"{needed.max_response_length} are {needed.max_length}: "
            f"{remedy}, or lower one of the two"
        )
    wanted = PurePath(needed.path).name
    if server.spec is None and not {wanted, MODEL_NAME} & _names(served):
        raise WrongServer(
            f"vllm.urls: {server.url} serves {served.name!r} from {served.path!r}, and model.path "
            f"is {needed.path!r}; correct the address, or start that server with "
            f"--served-model-name {MODEL_NAME} if it is the same model"
        )
    server.model = served.name


def _names(served: ServedModel) -> set[str]:
    """Names under which the served model is known."""
    return {PurePath(served.name).name, PurePath(served.path).name}


def _no_vllm(url: str, said: str) -> str:
    return f"vllm.urls: what answers at {url} is no vLLM server ({said}); correct the address"


def _wants_key(url: str, said: str) -> str:
    return (
        f"vllm.urls: {url} wants another API key ({said}); set vllm.api_key or the environment "
        "variable VLLM_API_KEY to it"
    )
