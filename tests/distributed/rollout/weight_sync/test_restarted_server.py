"""A real vLLM server that the run has started, killed between two syncs."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from served_engine import served_recipe, wait_until, write_served_model
from servers_of import needed_model

from megatron_resrl.config.schema import RolloutConfig
from megatron_resrl.platform.distributed import initialize, shutdown
from megatron_resrl.rollout.engine import GenerationRequest, SamplingParams
from megatron_resrl.rollout.engines.vllm import VllmEngine
from megatron_resrl.rollout.weight_sync.backends import server_arguments
from megatron_resrl.rollout.weight_sync.sender import SyncReport, WeightSender, build_sender
from megatron_resrl.rollout.worker import build_policy

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


class NotedSender:
    """A sender whose reports are kept."""

    def __init__(self, sender: WeightSender) -> None:
        self.sender, self.reports = sender, []
        self.connect, self.close = sender.connect, sender.close

    def send(self, servers, version) -> SyncReport:
        self.reports.append(self.sender.send(servers, version))
        return self.reports[-1]


def test_restarted_server_gets_all_weights_and_then_changes(tmp_path):
    recipe = served_recipe(write_served_model(tmp_path / "model"), tmp_path / "run")
    rollout = RolloutConfig("vllm", max_response_length=64, verify_weights=True)
    initialize(recipe.parallel, 0)
    try:
        policy = build_policy(recipe, trainable=False)
        sender = NotedSender(build_sender(policy, needed_model(recipe), recipe.vllm, rollout))
        engine = VllmEngine(
            needed_model(recipe),
            recipe.vllm,
            sender,
            colocated=False,
            output_dir=tmp_path / "run",
            weight_flags=server_arguments(recipe.vllm, "disaggregated"),
        )
        try:
            request = GenerationRequest([[3, 4]], SamplingParams(8, ()), seed=(0,))
            engine.generate(request)
            for version in (1, 2, 3):
                with torch.no_grad():
                    for parameter in policy.modules[0].parameters():
                        parameter.view(-1)[::50] *= 1.01
                if version == 2:
                    _kill_and_wait(engine)
                engine.update_weights(version)
                engine.generate(request)
        finally:
            engine.close()
    finally:
        shutdown()
    first, changes, after, again = [report.sent_bytes for report in sender.reports]
    assert after == first
    assert max(changes, again) < 0.1 * first
    assert all(not report.failed for report in sender.reports)


def _kill_and_wait(engine: VllmEngine) -> None:
    """Returns when the server has been started again."""
    (server,) = engine._pool.servers
    os.killpg(server.process.pid, signal.SIGKILL)
    wait_until(lambda: server.restarts == 1 and engine._pool.outdated())
