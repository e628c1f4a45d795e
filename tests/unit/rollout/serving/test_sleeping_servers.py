"""Servers on the trainer's GPUs: in which order they wake, take weights and answer."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from answering import answering, model_card, vllm_like
from served_engine import start_engine
from servers_of import needed_model
from tiny_recipe import write_model

from megatron_resrl.config.schema import (
    DataConfig,
    ModelConfig,
    PrecisionConfig,
    Recipe,
    RolloutConfig,
    VllmConfig,
)
from megatron_resrl.platform.distributed import initialize, shutdown
from megatron_resrl.rollout.weight_sync.sender import build_sender
from megatron_resrl.rollout.worker import build_policy

WEIGHTS, CACHE = "weights", "kv_cache"
NEEDS = {
    "/start_weight_update": {WEIGHTS},
    "/update_weights": {WEIGHTS},
    "/finish_weight_update": {WEIGHTS},
    "/reset_prefix_cache": {WEIGHTS, CACHE},
    "/resume": {WEIGHTS, CACHE},
    "/collective_rpc": {WEIGHTS, CACHE},
    "/inference/v1/generate": {WEIGHTS, CACHE},
}
"""What has to be awake for a route."""


class Sleeper:
    """A server that refuses what its sleeping memory cannot do, and notes what it is asked."""

    def __init__(self) -> None:
        self.asleep: set[str] = set()
        self.asked: list[str] = []
        self.refused: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, request):
        with self._lock:
            return self._answer(request)

    def _answer(self, request):
        route, tag = request.route, request.parameters.get("tags")
        self.asked.append(f"{route} {tag}" if tag else route)
        if NEEDS.get(route, set()) & self.asleep:
            self.refused.append(route)
            return 500, {"error": "asleep"}
        if route == "/sleep":
            self.asleep = {WEIGHTS, CACHE}
        if route == "/wake_up":
            self.asleep -= {tag} if tag else {WEIGHTS, CACHE}
        if route == "/collective_rpc":
            return 500, {"error": "no such method"}
        if route == "/inference/v1/generate":
            logprobs = {"content": [{"logprob": -0.5}]}
            choice = {"token_ids": [3], "finish_reason": "length", "logprobs": logprobs}
            return 200, {"choices": [choice]}
        return 200, {"success": True}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What a server was asked between its sleep and the end of the next sync, and collections."""
    model = write_model(tmp_path / "model")
    sleeper = Sleeper()

    def note(phase, info):
        if phase == "start" and info["generation"] == 2:
            sleeper.asked.append("garbage collected")

    def give_back():
        sleeper.asked.append("memory given back")

    with answering(vllm_like(model_card(root=str(model)), sleeper)) as url:
        recipe = Recipe(
            model=ModelConfig(str(model)),
            precision=PrecisionConfig("fp32"),
            data=DataConfig(max_prompt_length=8),
            rollout=RolloutConfig("vllm", max_response_length=8, verify_weights=True),
            vllm=VllmConfig(
                urls=(url,), weight_transfer="file", transfer_dir=str(tmp_path), max_restarts=0
            ),
        )
        initialize(recipe.parallel, 0)
        monkeypatch.setattr(torch.cuda, "empty_cache", give_back)
        try:
            policy = build_policy(recipe, trainable=False)
            sender = build_sender(policy, needed_model(recipe), recipe.vllm, recipe.rollout)
            engine = start_engine(recipe, sender)
            engine._can_sleep = True
            engine.sleep()
            gc.callbacks.append(note)
            engine.update_weights(1)
            gc.callbacks.remove(note)
            engine.close()
        finally:
            shutdown()
    assert not sleeper.refused
    return [each for each in sleeper.asked if each not in ("/health", "/metrics")]


def test_vllm_engine_wakes_servers_in_parts_and_then_verifies(asked):
    start = asked.index("/sleep")
    order = list(dict.fromkeys(asked[start:]))
    assert order[:3] == ["/sleep", "garbage collected", "memory given back"]
    assert order[3:] == [
        "/wake_up weights",
        "/pause",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/wake_up kv_cache",
        "/reset_prefix_cache",
        "/resume",
        "/collective_rpc",
    ]
