"""Real servers that die, hang or do not start: nothing finished is lost, nothing outlives us."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace

import psutil
import pytest
from ranks import REPOSITORY
from served_engine import (
    engine_of,
    one_rank,
    served_recipe,
    start_engine,
    vllm_python,
    wait_until,
    write_served_model,
)

from megatron_resrl.rollout.engine import GenerationRequest, SamplingParams
from megatron_resrl.rollout.serving import pool as pool_module
from megatron_resrl.rollout.serving.pooled_server import ServerState
from megatron_resrl.rollout.serving.server import StartFailure

pytestmark = pytest.mark.vllm
PROMPTS = [[3 + prompt, 4, 5, 6, 7] for prompt in range(10)]
SAMPLING = SamplingParams(500, (), n=4)
RUNNING = 8
STALL_S = 15.0


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return write_served_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def group():
    with one_rank():
        yield


@pytest.fixture(scope="module")
def engine(group, model_path, tmp_path_factory):
    """Two servers."""
    recipe = served_recipe(
        model_path,
        tmp_path_factory.mktemp("run"),
        servers=2,
        seed_requests=True,
        max_running_requests=RUNNING,
        stall_timeout_s=STALL_S,
    )
    with engine_of(recipe) as engine:
        yield engine


@pytest.fixture
def requests(monkeypatch):
    """Counts what is sent and answered, by URL and seed, which names the sample."""
    sent, answered = Counter(), Counter()
    send = pool_module.send_request

    async def counted(client, url, body, *, timeout_s):
        sent[url, body["sampling_params"].get("seed")] += 1
        answer = await send(client, url, body, timeout_s=timeout_s)
        answered[url, body["sampling_params"].get("seed")] += 1
        return answer

    monkeypatch.setattr(pool_module, "send_request", counted)
    return sent, answered


def server_of(pooled) -> psutil.Process:
    """vLLM's API server, below our guardian."""
    (server,) = psutil.Process(pooled.process.pid).children()
    return server


def core_of(pooled) -> psutil.Process:
    """vLLM's engine core, below its API server."""
    (core,) = (p for p in server_of(pooled).children() if "EngineCore" in " ".join(p.cmdline()))
    return core


def by_seed(counts: Counter) -> Counter:
    total: Counter = Counter()
    for (_, seed), count in counts.items():
        if seed is not None:  # Warm-ups have none.
            total[seed] += count
    return total


@pytest.mark.slow
def test_pool_spreads_groups_and_keeps_them_together(engine, requests):
    sent, _ = requests
    engine.generate(GenerationRequest(PROMPTS, replace(SAMPLING, max_new_tokens=40), seed=(0,)))
    load = Counter(url for url, _ in sent.elements())
    assert len(load) == 2
    assert min(load.values()) >= RUNNING  # To begin with; then the faster one gets more.
    assert all(count % SAMPLING.n == 0 for count in load.values())


@pytest.mark.slow
def test_pool_restarts_a_killed_server_and_repeats_its_samples(engine, requests):
    sent, answered = requests
    victim = engine._pool.servers[0]
    undisturbed = engine.generate(GenerationRequest(PROMPTS, SAMPLING, seed=(1,)))
    sent.clear(), answered.clear()
    told, first = {}, threading.Event()

    def on_group(index, responses):
        assert index not in told
        told[index] = responses
        first.set()

    pending = engine.begin(GenerationRequest(PROMPTS, SAMPLING, seed=(1,), on_group=on_group))
    assert first.wait(120)
    running = len(victim.running)
    server_of(victim).send_signal(signal.SIGKILL)
    responses = pending.result()

    assert told == dict(enumerate(responses))
    assert set(by_seed(answered).values()) == {1}
    again = sum(by_seed(sent).values()) - len(PROMPTS) * SAMPLING.n
    assert 0 < again <= running <= RUNNING
    same = [
        ours.token_ids == theirs.token_ids
        for pair in zip(responses, undisturbed, strict=True)
        for ours, theirs in zip(*pair, strict=True)
    ]
    assert sum(same) / len(same) > 0.9  # Others differ by rounding: batches were different ones.
    wait_until(lambda: victim.state is not ServerState.STARTING)
    engine.generate(GenerationRequest(PROMPTS, replace(SAMPLING, max_new_tokens=40), seed=(2,)))
    assert victim.state is ServerState.SERVING
    assert victim.url in engine.sender.sent[-1][1]


@pytest.mark.slow
@pytest.mark.setting("vllm.stall_timeout_s")
def test_pool_replaces_hanging_servers_within_the_stall_time(engine, requests):
    sent, answered = requests
    wait_until(
        lambda: all(pooled.state is not ServerState.STARTING for pooled in engine._pool.servers)
    )
    engine.update_weights(5)
    urls = {pooled.url for pooled in engine._pool.servers}
    pending = engine.begin(GenerationRequest(PROMPTS, SAMPLING, seed=(3,)))
    wait_until(lambda: len(answered) >= 4)
    for pooled in engine._pool.servers:
        os.killpg(pooled.process.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    time.sleep(1)  # For answers that were on their way.
    unfinished = sum(len(pooled.running) for pooled in engine._pool.servers)
    wait_until(lambda: all(pooled.state is ServerState.STARTING for pooled in engine._pool.servers))
    assert time.monotonic() - stopped < 2 * STALL_S
    responses = pending.result()
    assert all(len(group) == SAMPLING.n for group in responses)
    assert set(by_seed(answered).values()) == {1}
    assert 0 < unfinished <= 2 * RUNNING
    again = sum(by_seed(sent).values()) - len(PROMPTS) * SAMPLING.n
    # What the first one lost may go to the other, as far as that has room, before it fails, too.
    assert unfinished <= again <= 2 * RUNNING
    assert not urls & set(engine.sender.sent[-1][1])
    assert all(r.weight_versions == (5, 5) for group in responses for r in group)


@pytest.mark.slow
def test_pool_replaces_hanging_and_dead_engine_cores(engine, requests):
    _, answered = requests
    wait_until(
        lambda: all(pooled.state is not ServerState.STARTING for pooled in engine._pool.servers)
    )
    engine.update_weights(6)
    hangs, dies = engine._pool.servers
    pids = [pooled.process.pid for pooled in (hangs, dies)]
    pending = engine.begin(GenerationRequest(PROMPTS, SAMPLING, seed=(4,)))
    wait_until(lambda: len(answered) >= 4)
    core_of(hangs).send_signal(signal.SIGSTOP)
    core_of(dies).send_signal(signal.SIGKILL)
    responses = pending.result()
    assert all(len(group) == SAMPLING.n for group in responses)
    assert set(by_seed(answered).values()) == {1}
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert all(r.weight_versions == (6, 6) for group in responses for r in group)


def test_pool_shows_the_log_of_a_server_that_does_not_start(group, model_path, tmp_path):
    recipe = served_recipe(model_path, tmp_path, arguments={"no-such-flag": 1})
    with pytest.raises(StartFailure) as failure:
        start_engine(recipe)
    assert "server 0" in str(failure.value)
    assert "ended with status 2 while it started" in str(failure.value)
    assert "unrecognized arguments: --no-such-flag" in str(failure.value)
    host = socket.gethostname().partition(".")[0]
    assert str(tmp_path / "vllm" / f"{host}_server_0.log") in str(failure.value)


@pytest.mark.setting("vllm.start_timeout_s")
def test_pool_names_an_address_without_server(group, model_path, tmp_path):
    recipe = served_recipe(model_path, tmp_path, urls=("http://127.0.0.1:9",), start_timeout_s=0.5)
    said = r"vllm.urls: http://127.0.0.1:9/health did not .* vllm.start_timeout_s = 0.5 s"
    with pytest.raises(StartFailure, match=said):
        start_engine(recipe)


TRAINER = """
import sys, time
from pathlib import Path
from served_engine import served_recipe
from servers_of import specs_of
from megatron_resrl.rollout.serving.server import ServerProcess
recipe = served_recipe(Path(sys.argv[1]), Path(sys.argv[2]))
(spec,) = specs_of(recipe)
print(ServerProcess(spec).pid, flush=True)
time.sleep(600)
"""


def test_guardian_ends_servers_of_a_killed_trainer(model_path, tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(model_path), str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    guardian = psutil.Process(int(trainer.stdout.readline()))
    # API server and engine core.
    wait_until(lambda: len(guardian.children(recursive=True)) >= 2)
    server = [guardian, *guardian.children(recursive=True)]
    assert any(vllm_python()[0] in " ".join(process.cmdline()) for process in server)
    trainer.kill()
    trainer.wait()
    _, alive = psutil.wait_procs(server, timeout=10)
    assert not alive
