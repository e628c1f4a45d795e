"""What of the settings reaches engines, environments and what sends weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from servers_of import needed_model

from megatron_resrl.config.schema import (
    RolloutConfig,
    VllmConfig,
)
from megatron_resrl.data.tokenizer import load_tokenizer
from megatron_resrl.rollout.engines.factory import make_engine
from megatron_resrl.rollout.weight_sync.control import ServerControl
from megatron_resrl.rollout.weight_sync.sender import build_sender


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


@pytest.mark.setting("rollout.max_running_samples")
def test_make_engine_bounds_the_responses_decoded_at_once(recipe, policy):
    settings = replace(recipe, rollout=RolloutConfig(max_running_samples=5))
    assert make_engine(settings, policy, None, trainable=True).max_running_samples == 5


@pytest.mark.setting("rollout.environment_options", "rollout.max_turns")
def test_make_engine_gives_the_environment_options_and_turns(recipe, policy):
    rollout = RolloutConfig(environment="number_game", environment_options={"high": 5}, max_turns=3)
    settings = replace(recipe, rollout=rollout)
    episodes = make_engine(settings, policy, load_tokenizer(recipe.model), trainable=True)
    assert episodes.seats.make().high == 5
    assert episodes.settings.max_turns == 3


@pytest.mark.setting("vllm.transfer_dir", "vllm.bucket_bytes", "rollout.verify_weights")
def test_weight_sender_uses_buckets_the_folder_and_verifies(recipe, policy, taker, tmp_path):
    vllm = VllmConfig(weight_transfer="file", transfer_dir=str(tmp_path), bucket_bytes=4096)
    settings = replace(
        recipe, vllm=vllm, rollout=RolloutConfig(verify_weights=True, max_response_length=8)
    )
    url = f"http://127.0.0.1:{taker.server_port}"
    sender = build_sender(policy, needed_model(settings), vllm, settings.rollout)
    report = sender.send([ServerControl(url, timeout_s=10)], 7)
    assert len(taker.files) > 5
    assert all(tmp_path in file.parents for file in taker.files)
    assert taker.routes[-1] == "/collective_rpc"
    assert report.failed == (url,)
