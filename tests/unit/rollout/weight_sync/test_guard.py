"""The key that guards every route of a server."""

from __future__ import annotations

import asyncio

import pytest

from megatron_resrl.rollout.weight_sync.worker.megatron_resrl_guard import RequireKey


async def _app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


def status(guard: RequireKey, path: str, authorization: str | None) -> int:
    sent = []

    async def send(message):
        sent.append(message)

    headers = [] if authorization is None else [(b"authorization", authorization.encode())]
    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(guard(scope, None, send))
    return sent[0]["status"]


@pytest.mark.parametrize(
    "path", ["/collective_rpc", "/update_weights", "/v1/models", "/sleep", "/"]
)
def test_require_key_guards_every_route(monkeypatch, path):
    monkeypatch.setenv("VLLM_API_KEY", "s3cret")
    guard = RequireKey(_app)
    assert status(guard, path, "Bearer s3cret") == 200
    for wrong in (None, "", "Bearer", "Bearer other", "s3cret"):
        assert status(guard, path, wrong) == 401


def test_require_key_leaves_health_open(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "s3cret")
    assert status(RequireKey(_app), "/health", None) == 200
    monkeypatch.delenv("VLLM_API_KEY")
    assert status(RequireKey(_app), "/collective_rpc", None) == 200
