"""A metrics service that fails in any way neither ends a run nor holds it up.

The service cannot run here: a package called wandb takes its place and does what services do.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import threading
from pathlib import Path

import pytest

from megatron_resrl.observe import wandb_sink
from megatron_resrl.observe.metrics import MetricsLogger

FAKE = """
import json, pathlib, threading

class _Api:
    api_key = {key!r}

api = _Api()
calls = pathlib.Path({calls!r})

def _note(**call):
    with calls.open("a") as file:
        file.write(json.dumps(call) + "\\n")

class _Run:
    id = "x"
    def log(self, metrics, step):
        {log}
        _note(log=metrics, step=step)
    def finish(self):
        {finish}
        _note(finish=True)

def init(mode=None, settings=None, **arguments):
    _note(init=arguments, mode=mode)
    if mode != "offline":
        {init}
    return _Run()
"""
HANG = "threading.Event().wait()"
FAIL = "raise RuntimeError('the service is down')"


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a wandb on the path that does what it is told, and returns what was called."""
    monkeypatch.setattr(wandb_sink, "START_S", 0.2)
    monkeypatch.setattr(wandb_sink, "FINISH_S", 0.2)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    calls = tmp_path / "calls.jsonl"

    def make(*, key: str | None = "k", init: str = "pass", log: str = "pass", finish: str = "pass"):
        package = tmp_path / "packages" / "wandb.py"
        package.parent.mkdir()
        package.write_text(
            FAKE.format(key=key, calls=str(calls), init=init, log=log, finish=finish)
        )
        monkeypatch.syspath_prepend(str(package.parent))
        monkeypatch.delitem(sys.modules, "wandb", raising=False)
        importlib.invalidate_caches()
        return lambda: [json.loads(line) for line in calls.read_text().splitlines()]

    yield make
    sys.modules.pop("wandb", None)


def run(directory: Path, resume_step: int | None = None, **names: object) -> None:
    with MetricsLogger(
        directory, tensorboard=False, wandb_project="p", resume_step=resume_step, **names
    ) as metrics:
        metrics.log((resume_step or 0) + 1, {"reward": 0.5})
        metrics.log((resume_step or 0) + 2, {"reward": 0.6})


def test_wandb_sink_sends_every_step_and_name(
    service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_sink, "FINISH_S", 60.0)
    monkeypatch.setattr(wandb_sink, "START_S", 60.0)
    calls = service()
    names = {"wandb_name": "n", "wandb_entity": "e", "wandb_group": "g", "wandb_tags": ("a", "b")}
    run(tmp_path / "first", **names)
    run(tmp_path / "first", resume_step=2)
    first, *logged, second, _, _, last = calls()
    assert first["init"]["project"] == "p"
    given = {name: first["init"][name] for name in ("name", "entity", "group", "tags")}
    assert given == {"name": "n", "entity": "e", "group": "g", "tags": ["a", "b"]}
    assert [call.get("step") for call in logged] == [1, 2, None]
    assert logged[0]["log"] == {"reward": 0.5}
    assert second["init"]["id"] == first["init"]["id"]
    assert second["init"]["name"] == "first"
    assert last == {"finish": True}
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ({"init": FAIL}, "the service is down; the run is kept below"),
        ({"key": None}, "no login (`wandb login`"),
        ({"init": HANG}, "wandb: it has not finished within"),
        ({"log": FAIL}, "step 1 is not logged (RuntimeError: the service is down)"),
        ({"log": HANG}, "it has not finished within"),
        ({"finish": FAIL}, "the run is not finished there"),
        ({"finish": HANG}, "it has not finished within"),
    ],
)
def test_wandb_sink_warns_once_of_a_service_that_fails(
    service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    behaviour: dict,
    words: str,
) -> None:
    caplog.set_level(logging.WARNING)
    hangs = HANG in behaviour.values()
    calls = service(**behaviour)
    if not hangs:
        monkeypatch.setattr(wandb_sink, "FINISH_S", 60.0)
        monkeypatch.setattr(wandb_sink, "START_S", 60.0)
    run(tmp_path / "run")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert len(caplog.messages) == 1
    assert words in caplog.messages[0]
    if behaviour in ({"init": FAIL}, {"key": None}):
        assert calls()[-4]["mode"] == "offline"
        assert [call.get("step") for call in calls()[-3:-1]] == [1, 2]
    threads = [thread for thread in threading.enumerate() if thread.name == "wandb"]
    assert all(thread.daemon for thread in threads)


def test_wandb_sink_never_waits_for_a_service_that_hangs(
    service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service(init=HANG)
    monkeypatch.setattr(wandb_sink, "START_S", 0.0)
    with MetricsLogger(tmp_path / "run", tensorboard=False, wandb_project="p") as metrics:
        for step in range(1, 50):
            metrics.log(step, {"reward": 0.0})
    assert caplog.messages == ["wandb: no answer within 0 s; the run goes on without it"]
