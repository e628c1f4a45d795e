"""What of the settings reaches engines, environments and what sends weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from tiny_recipe import write_model

from megatron_resrl.config.schema import (
    ModelConfig,
    PrecisionConfig,
    Recipe,
    RolloutConfig,
    VllmConfig,
)
from megatron_resrl.data.tokenizer import load_tokenizer
from megatron_resrl.platform.distributed import initialize, shutdown
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.engines.factory import make_engine
from megatron_resrl.rollout.environments.player import player_of
from megatron_resrl.rollout.weight_sync.control import ServerControl
from megatron_resrl.rollout.weight_sync.sender import WeightSender
from megatron_resrl.rollout.worker import build_policy


class _Taker(BaseHTTPRequestHandler):
    """Takes weights like a server, and cannot say what it holds."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        route = self.path.partition("?")[0]
        self.server.routes.append(route)
        if route == "/update_weights":
            self.server.files.append(Path(body["update_info"]["path"]))
        answer = b'{"success": true}'
        self.send_response(500 if route == "/collective_rpc" else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def taker() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Taker)
    server.routes, server.files = [], []
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    """Of a tiny model, on one rank."""
    model = write_model(tmp_path_factory.mktemp("model"))
    settings = Recipe(model=ModelConfig(path=str(model)), precision=PrecisionConfig("fp32"))
    initialize(settings.parallel, seed=0)
    yield settings
    shutdown()


@pytest.fixture(scope="module")
def policy(recipe: Recipe) -> Policy:
    return build_policy(recipe, trainable=False)


@pytest.mark.setting("rollout.max_running_samples")
def test_the_embedded_engine_decodes_so_many_responses_at_once(recipe, policy):
    settings = replace(recipe, rollout=RolloutConfig(max_running_samples=5))
    assert make_engine(settings, policy, trainable=True).max_running_samples == 5


@pytest.mark.setting("rollout.environment_options", "rollout.max_turns")
def test_an_environment_gets_its_options_and_turns(recipe, policy):
    rollout = RolloutConfig(environment="number_game", environment_options={"high": 5}, max_turns=3)
    settings = replace(recipe, rollout=rollout)
    engine = make_engine(settings, policy, trainable=True)
    episodes = player_of(settings, engine, load_tokenizer(recipe.model))
    assert episodes._environment().high == 5
    assert episodes.max_turns == 3


@pytest.mark.setting("vllm.transfer_dir", "vllm.bucket_bytes", "rollout.verify_weights")
def test_weights_go_in_buckets_through_the_folder_and_are_verified(recipe, policy, taker, tmp_path):
    vllm = VllmConfig(weight_transfer="file", transfer_dir=str(tmp_path), bucket_bytes=4096)
    settings = replace(
        recipe, vllm=vllm, rollout=RolloutConfig(verify_weights=True, max_response_length=8)
    )
    url = f"http://127.0.0.1:{taker.server_port}"
    report = WeightSender(policy, settings).send([ServerControl(url, timeout_s=10)], 7)
    assert len(taker.files) > 5
    assert all(tmp_path in file.parents for file in taker.files)
    assert taker.routes[-1] == "/collective_rpc"
    assert report.failed == (url,)
