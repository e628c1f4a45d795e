"""Control calls to one vLLM server: health, weights, sleep."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Mapping
from typing import Any

import httpx

from megatron_resrl.errors import RunError

_SHOWN = 300
"""Characters of an answer that a message shows."""


class ServerFailure(RunError):
    """A server did not answer, or answered otherwise than vLLM does."""

    answered: int | None = None
    """Status code of the answer; None: there was no answer."""


class ServerControl:
    """The control routes of one server (vLLM serves them under VLLM_SERVER_DEV_MODE=1)."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        api_key: str | None = None,
        cache_sleeps: bool = False,
        rank_beside: int = 0,
    ) -> None:
        """
        Args:
            url: E.g. http://127.0.0.1:8000.
            timeout_s: Seconds that a call may take by default.
            api_key: Key that the server requires with every call; None: none.
            cache_sleeps: Whether the key-value cache sleeps and must be woken after new weights.
            rank_beside: First rank of the trainer on the server's node; 0 also where no rank is.
        """
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.cache_sleeps = cache_sleeps
        self.rank_beside = rank_beside
        self._headers = authorization(api_key)

    def post(
        self,
        route: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """POSTs JSON. Returns the decoded answer, None for an empty one.

        Raises:
            ServerFailure: No connection, no answer in time, or a status that says error.
        """
        return self._call("POST", route, body, params, timeout_s)

    def get(
        self,
        route: str,
        *,
        params: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """GETs like `post`."""
        return self._call("GET", route, None, params, timeout_s)

    def field(
        self, method: str, route: str, name: str, *, params: Mapping[str, Any] | None = None
    ) -> Any:
        """One value of the object that a route answers with.

        Args:
            method: GET or POST.
            route: Path of the call.
            name: Name of the value.
            params: Query parameters of the call.

        Raises:
            ServerFailure: As `post`, or the answer has no such value.
        """
        answer = self._call(method, route, None, params, None)
        if isinstance(answer, dict) and name in answer:
            return answer[name]
        raise ServerFailure(
            f"{method} {self.url}{route} answered without {name!r}: {shortened(str(answer))}"
        )

    def _call(
        self,
        method: str,
        route: str,
        body: Mapping[str, Any] | None,
        params: Mapping[str, Any] | None,
        timeout_s: float | None,
    ) -> Any:
        try:
            answer = httpx.request(
                method,
                f"{self.url}/{route.lstrip('/')}",
                json=body,
                params=params,
                headers=self._headers,
                timeout=timeout_s or self.timeout_s,
                verify=_tls(),
                trust_env=False,  # No proxy of the cluster between trainer and server.
            )
        except httpx.HTTPError as error:
            raise ServerFailure(
                f"{method} {self.url}/{route.lstrip('/')} failed: {type(error).__name__}: {error}"
            ) from error
        if answer.is_success:
            try:
                return answer.json() if answer.content else None
            except ValueError:
                pass
        said = f"{method} {answer.url} answered {answer.status_code}: {shortened(answer.text)}"
        failure = ServerFailure(said)
        failure.answered = answer.status_code
        raise failure


@functools.cache
def _tls() -> ssl.SSLContext:
    """httpx's own settings, read once: that takes 20 ms, longer than most calls."""
    return httpx.create_ssl_context(trust_env=False)


def authorization(api_key: str | None) -> dict[str, str]:
    """The header that carries the API key."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def shortened(answer: str) -> str:
    """An answer as one line of bounded length."""
    line = " ".join(answer.split()) or "nothing"
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
