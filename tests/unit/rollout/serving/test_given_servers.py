"""Servers that are not ours, at addresses that vanish; limits of what is tried again."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import pytest
from served_engine import (
    NoSender,
    Sent,
    engine_of,
    one_rank,
    served_recipe,
    start_engine,
    wait_until,
    write_served_model,
)
from tcp_proxy import proxy_to
from vllm_server import vllm_server

from megatron_resrl.config.schema import VllmConfig
from megatron_resrl.rollout.engine import GenerationRequest, SamplingParams
from megatron_resrl.rollout.serving.pool import RolloutFailure
from megatron_resrl.rollout.serving.pooled_server import ServerState
from megatron_resrl.rollout.serving.server import StartFailure
from megatron_resrl.rollout.weight_sync.backends import server_arguments
from megatron_resrl.rollout.weight_sync.control import ServerControl

pytestmark = pytest.mark.vllm
PROMPTS = [[3 + prompt, 4, 5, 6, 7] for prompt in range(8)]
SAMPLING = SamplingParams(200, (), n=4)
FLAGS = ["--load-format", "auto", "--skip-tokenizer-init", "--max-model-len", "4096"]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return write_served_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model_path, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    arguments, environment = server_arguments(VllmConfig(weight_transfer="file"), "colocated")
    with vllm_server(model_path, log, [*FLAGS, *arguments], environment) as url, one_rank():
        yield url


@pytest.fixture
def recipe(model_path, tmp_path):
    def make(*urls: str, **vllm):
        return served_recipe(model_path, tmp_path, urls=urls, max_running_requests=8, **vllm)

    return make


def begin(engine):
    """Returns the pending rollout when its first group is complete."""
    first = threading.Event()
    pending = engine.begin(
        GenerationRequest(PROMPTS, SAMPLING, seed=(1,), on_group=lambda *_: first.set())
    )
    assert first.wait(120)
    return pending


def test_pool_updates_a_given_server_that_comes_back(server, recipe):
    told = Counter()
    with proxy_to(server) as proxy, engine_of(recipe(server, proxy.url)) as engine:
        stayed, gone = engine._pool.servers
        engine.update_weights(3)
        pending = engine.begin(
            GenerationRequest(
                PROMPTS, SAMPLING, seed=(1,), on_group=lambda index, _: told.update([index])
            )
        )
        wait_until(lambda: told)
        proxy.close()
        responses = pending.result()
        assert [len(group) for group in responses] == [SAMPLING.n] * len(PROMPTS)
        assert told == Counter(range(len(PROMPTS)))
        wait_until(lambda: gone.state is ServerState.STARTING)
        assert stayed.state is ServerState.SERVING
        proxy.open()
        wait_until(lambda: gone.state is ServerState.OUTDATED)
        engine.generate(
            GenerationRequest(PROMPTS[:2], replace(SAMPLING, max_new_tokens=8), seed=(2,))
        )
        assert engine.sender.sent[-1] == (3, [proxy.url])
        assert gone.state is ServerState.SERVING


def test_pool_gives_up_a_server_that_stays_away(server, recipe):
    with proxy_to(server) as proxy, engine_of(recipe(server, proxy.url, max_restarts=1)) as engine:
        engine._pool.vllm = replace(engine._pool.vllm, start_timeout_s=0.5)
        stayed, gone = engine._pool.servers
        pending = begin(engine)
        proxy.close()
        assert len(pending.result()) == len(PROMPTS)
        wait_until(lambda: gone.state is ServerState.GIVEN_UP)
        assert stayed.state is ServerState.SERVING
        engine.generate(GenerationRequest(PROMPTS, SAMPLING, seed=(2,)))


@pytest.mark.setting("vllm.max_restarts")
def test_pool_without_servers_refuses_every_rollout(server, recipe):
    with proxy_to(server) as proxy, engine_of(recipe(proxy.url, max_restarts=1)) as engine:
        engine._pool.vllm = replace(engine._pool.vllm, start_timeout_s=0.5)
        pending = begin(engine)
        proxy.close()
        with pytest.raises(RolloutFailure) as failure:
            pending.result()
        assert "no vLLM server is left" in str(failure.value)
        assert "2 times in a row (vllm.max_restarts)" in str(failure.value)
        assert f"{proxy.url}/health did not answer" in str(failure.value)
        with pytest.raises(RolloutFailure, match="no vLLM server is left"):
            engine.generate(GenerationRequest(PROMPTS, SAMPLING, seed=(2,)))


@pytest.mark.setting("vllm.max_retries", "vllm.request_timeout_s")
def test_pool_repeats_a_slow_sample_and_then_fails(server, recipe, monkeypatch):
    with engine_of(recipe(server, max_retries=2)) as engine:
        settings = engine._pool.vllm
        monkeypatch.setattr(engine._pool, "vllm", replace(settings, request_timeout_s=0.2))
        with pytest.raises(RolloutFailure) as failure:
            engine.generate(
                GenerationRequest(PROMPTS, replace(SAMPLING, max_new_tokens=2000), seed=(3,))
            )
        assert "was lost 3 times (vllm.max_retries = 2)" in str(failure.value)
        assert "not answered within vllm.request_timeout_s = 0.2 s" in str(failure.value)
        monkeypatch.setattr(engine._pool, "vllm", settings)
        responses = engine.generate(GenerationRequest(PROMPTS, SAMPLING, seed=(4,)))
        assert all(len(response.token_ids) == 200 for group in responses for response in group)


def test_pool_sends_weights_again_after_a_failed_update(server, recipe):
    class FailsOnce(NoSender):
        """Reports a server as failed, the second time it is sent weights."""

        def send(self, servers, version):
            report = super().send(servers, version)
            failed = len(self.sent) == 2
            return Sent(failed=tuple(server.url for server in servers)) if failed else report

    with engine_of(recipe(server), FailsOnce()) as engine:
        assert engine.update_weights(7)["sync/failed_servers"] == 0
        assert engine.update_weights(8)["sync/failed_servers"] == 1
        (group,) = engine.generate(GenerationRequest(PROMPTS[:1], SAMPLING, seed=(5,)))
        assert engine.sender.sent[2:] == [(8, [server])]
        assert all(response.weight_versions == (8, 8) for response in group)


def test_pool_resumes_a_server_left_in_an_update(server, recipe):
    greedy = replace(SAMPLING, temperature=0.0, n=1)
    with engine_of(recipe(server)) as engine:
        before = engine.generate(GenerationRequest(PROMPTS, greedy, seed=(6,)))
    control = ServerControl(server)
    control.post("/pause", params={"mode": "keep"})
    control.post("/start_weight_update")
    with engine_of(recipe(server, start_timeout_s=60)) as engine:
        after = engine.generate(GenerationRequest(PROMPTS, greedy, seed=(6,)))
    assert [group[0].token_ids for group in after] == [group[0].token_ids for group in before]
    control.post("/start_weight_update")  # The first update was closed.
    control.post("/finish_weight_update")


@pytest.mark.slow
def test_pool_refuses_a_server_without_control_routes(server, model_path, recipe, tmp_path):
    with (
        vllm_server(model_path, tmp_path / "log", FLAGS, {}) as url,
        pytest.raises(StartFailure, match="start it with VLLM_SERVER_DEV_MODE=1") as failure,
    ):
        start_engine(recipe(url))
    assert f"vllm.urls: {url} cannot be controlled" in str(failure.value)
    assert "404" in str(failure.value)
