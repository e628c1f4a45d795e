"""Runs inside vLLM's API server: its API key guards every route.

vLLM 0.32 itself guards `/v1` and `/inference` alone: whoever reaches its port may change its
weights and, by `/collective_rpc`, run its workers' methods.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

OPEN_ROUTES = ("/health", "/metrics")
"""Say nothing of the model and change nothing."""

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class RequireKey:
    """ASGI middleware (`--middleware megatron_resrl_guard.RequireKey`).

    Without the environment variable VLLM_API_KEY it lets everything pass.
    """

    def __init__(self, app: Any) -> None:
        """
        Args:
            app: What it guards.
        """
        key = os.environ.get("VLLM_API_KEY")
        self._app = app
        self._expected = None if not key else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Passes a request on, or answers 401."""
        if scope["type"] not in ("http", "websocket") or self._may_pass(scope):
            await self._app(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})

    def _may_pass(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] in OPEN_ROUTES:
            return True
        shown = dict(scope["headers"]).get(b"authorization", b"")
        return secrets.compare_digest(shown, self._expected)
