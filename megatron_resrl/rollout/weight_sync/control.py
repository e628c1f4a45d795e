"""Calls to one vLLM server that are not requests for tokens: its health, its weights, its sleep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from megatron_resrl.errors import RunError

_SHOWN = 300
"""Characters of an answer that a message shows."""


class ServerFailure(RunError):
    """A server did not answer, or not as vLLM does."""

    answered: int | None = None
    """The status of its answer; None: there was none."""


class ServerControl:
    """The control routes of one server (vLLM serves them under VLLM_SERVER_DEV_MODE=1)."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        api_key: str | None = None,
        cache_sleeps: bool = False,
    ) -> None:
        """
        Args:
            url: E.g. http://127.0.0.1:8000.
            timeout_s: Seconds that a call may take unless it says otherwise.
            api_key: What the server wants to be shown with every call; None: nothing.
            cache_sleeps: Its keys and values sleep, and have to be woken after new weights.
        """
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.cache_sleeps = cache_sleeps
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
            route: Of the server.
            name: The value's.
            params: Of the call.

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
                trust_env=False,  # A proxy of the cluster has no business between these two.
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


def authorization(api_key: str | None) -> dict[str, str]:
    """The header that shows a server its key."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def shortened(answer: str) -> str:
    """An answer as one line of bounded length."""
    line = " ".join(answer.split()) or "nothing"
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
