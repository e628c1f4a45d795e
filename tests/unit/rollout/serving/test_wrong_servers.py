"""What answers at an address is looked at before anything is asked of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from threading import Thread

import psutil
import pytest
from answering import answering, model_card, vllm_like
from served_engine import one_rank, start_engine, wait_until

from megatron_resrl.config.schema import DataConfig, ModelConfig, Recipe, RolloutConfig, VllmConfig
from megatron_resrl.errors import UNUSABLE, InputError, exit_status
from megatron_resrl.rollout.serving.identity import answers_as_ours, require_model
from megatron_resrl.rollout.serving.needed_model import NeededModel
from megatron_resrl.rollout.serving.pooled_server import PooledServer
from megatron_resrl.rollout.serving.server import ServerProcess, ServerSpec, StartFailure
from megatron_resrl.rollout.serving.starting import await_answer, wait_ready

OLLAMA = {"object": "list", "data": [{"id": "llama3", "object": "model", "owned_by": "library"}]}
HTML = "<html><body>\n" + "a proxy's page " * 100 + "</body></html>"


def recipe(url: str = "http://127.0.0.1:1", **vllm) -> Recipe:
    return Recipe(
        model=ModelConfig(path="/data/m"),
        data=DataConfig(max_prompt_length=32),
        rollout=RolloutConfig(engine="vllm", max_response_length=8),
        vllm=VllmConfig(urls=(url,), start_timeout_s=5.0, **vllm),
    )


def looked_at(url: str, api_key: str | None = None) -> PooledServer:
    pooled = PooledServer(None, url=url, api_key=api_key)
    await_answer(pooled, 5.0, lambda: False)
    require_model(pooled, NeededModel("/data/m", 32, 8))
    return pooled


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: (200, HTML), "is no vLLM server"),
        (lambda _: (200, "hello"), "is no vLLM server"),
        (lambda _: (404, HTML), "/health answered 404"),
        (lambda _: (302, ""), "/health answered 302: nothing"),
        (vllm_like(OLLAMA), "llama3"),
        (vllm_like({"object": "list", "data": None}), "is no vLLM server"),
        (vllm_like([1, 2]), "is no vLLM server"),
        (vllm_like(model_card(7)), "is no vLLM server"),
        (vllm_like(model_card("policy", root=["m"])), "is no vLLM server"),
        (vllm_like("{not json"), "{not json"),
        (vllm_like(model_card(max_model_len=None)), "is no vLLM server"),
        (vllm_like(model_card(owned_by="sglang")), "sglang"),
        (vllm_like(model_card("Qwen3-4B", root="Qwen/Qwen3-4B")), "serves 'Qwen3-4B' from"),
        (lambda _: (401, {"error": "Unauthorized"}), "wants another API key"),
    ],
)
def test_identity_names_another_server_and_its_answer(answer, said):
    with answering(answer) as url, pytest.raises(InputError) as failure:
        looked_at(url)
    message = str(failure.value)
    assert url in message
    assert said in message
    assert "vllm.urls" in message
    assert len(message) < 700
    assert "\n" not in message


@pytest.mark.parametrize("answer", [{"detail": "paused"}, [True], "yes"])
def test_identity_refuses_other_control_routes(answer):
    def paused(request):
        if request.route == "/is_paused":
            return 200, json.dumps(answer)
        return vllm_like(model_card())(request)

    with answering(paused) as url, pytest.raises(StartFailure, match="cannot be controlled"):
        looked_at(url)


def test_identity_refuses_what_speaks_no_http():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            connection.sendall(b"220 mail ready\r\n\r\n")
            connection.recv(1000)
            connection.close()

        Thread(target=greet, daemon=True).start()
        with pytest.raises(InputError, match="no HTTP"):
            looked_at(f"http://127.0.0.1:{listener.getsockname()[1]}")


@pytest.mark.parametrize("card", [model_card(), model_card("m"), model_card("x", root="org/m")])
def test_identity_accepts_the_model_under_its_own_name(card):
    with answering(vllm_like(card)) as url:
        assert looked_at(url).model == card["data"][0]["id"]


def test_identity_refuses_a_context_that_is_too_short():
    with answering(vllm_like(model_card(max_model_len=39))) as url:
        with pytest.raises(InputError) as failure:
            looked_at(url)
        message = str(failure.value)
        assert f"server {url} takes 39 tokens" in message
        assert "data.max_prompt_length 32 + rollout.max_response_length 8 are 40" in message
        assert "--max-model-len 40" in message
    with answering(vllm_like(model_card(max_model_len=40))) as url:
        looked_at(url)


def test_identity_error_has_the_status_of_a_user_error():
    with (
        one_rank(),
        answering(vllm_like(model_card(max_model_len=6))) as url,
        pytest.raises(StartFailure) as failure,
    ):
        start_engine(recipe(url))
    assert exit_status(failure.value) == UNUSABLE
    assert failure.value.common


def test_await_answer_waits_and_shows_the_last_answer():
    with answering(lambda _: (503, "loading")) as url, pytest.raises(StartFailure) as failure:
        await_answer(PooledServer(None, url=url), 0.2, lambda: False)
    assert "did not answer within vllm.start_timeout_s = 0.2 s" in str(failure.value)
    assert "503: loading" in str(failure.value)


@pytest.mark.setting("vllm.api_key")
def test_api_key_goes_with_every_call_and_into_no_file(monkeypatch):
    shown = []

    def generate(request):
        shown.append(request.authorization)
        choice = {"token_ids": [1], "finish_reason": "length", "weight_versions": None}
        choice["logprobs"] = {"content": [{"logprob": -0.1}]}
        return 200, {"choices": [choice]}

    def guarded(request):
        shown.append(request.authorization)
        return vllm_like(model_card(), generate)(request)

    with one_rank(), answering(guarded) as url:
        start_engine(recipe(url, api_key="secret")).close()
        assert set(shown) == {"Bearer secret"}
        shown.clear()
        monkeypatch.setenv("VLLM_API_KEY", "from outside")
        start_engine(recipe(url)).close()
        assert set(shown) == {"Bearer from outside"}
    assert "secret" not in repr(recipe(api_key="secret"))


SLEEPER = (sys.executable, "-c", "import time; time.sleep(60)")


def test_identity_notices_another_server_on_our_port(tmp_path, monkeypatch):
    spec = ServerSpec("server 0", "policy-ours", SLEEPER, {}, tmp_path / "log")
    with answering(vllm_like(model_card("policy-theirs"))) as url:
        pooled = PooledServer(spec, url=url)
        assert not answers_as_ours(pooled)
        process = ServerProcess(spec)
        pooled.url = process.url = url
        with pytest.raises(StartFailure, match="was not ready"):
            wait_ready(process, 0.5, lambda: answers_as_ours(pooled))
    with answering(vllm_like(model_card("policy-ours"))) as url:
        pooled.url = url
        assert answers_as_ours(pooled)


def test_server_process_that_has_ended_is_not_ready(tmp_path):
    ends = (sys.executable, "-c", "raise SystemExit(7)")
    process = ServerProcess(ServerSpec("server 0", "policy-ours", ends, {}, tmp_path / "log"))
    process._process.wait()
    with pytest.raises(StartFailure, match="ended with status 7 while it started"):
        wait_ready(process, 60, lambda: True)
    assert Path(tmp_path / "log").read_text()


def test_server_process_survives_the_warning_of_the_time_limit(tmp_path):
    process = ServerProcess(ServerSpec("server 0", "policy-ours", SLEEPER, {}, tmp_path / "log"))
    wait_until(lambda: psutil.Process(process.pid).children())
    (server,) = psutil.Process(process.pid).children()
    # Until it runs its own command it is a copy of the guardian.
    wait_until(lambda: server.cmdline()[: len(SLEEPER)] == list(SLEEPER))
    os.killpg(process.pid, signal.SIGUSR1)
    process.stop()
    assert "status -15" in (tmp_path / "log").read_text()  # SIGTERM ended it, and not SIGUSR1.
