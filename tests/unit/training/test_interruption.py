"""Signals are noted, looked at when a step is done, and turned into a status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_resrl.platform.phases import begin_step, start_heartbeat
from megatron_resrl.training.interruption import Interrupted, Interruption


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def interrupted(directory: Path, *signals: signal.Signals, exit_code: int | None = None) -> int:
    """Status of a run that gets signals in step 7."""
    with Interruption(directory, exit_code) as interruption:
        assert not interruption.requested()
        for each in signals:
            os.kill(os.getpid(), each)
        assert interruption.requested()
        with pytest.raises(Interrupted, match="after step 7, which is saved in somew") as caught:
            interruption.end(7, Path("somewhere"))
    return caught.value.status


def test_interruption_has_an_exit_status_per_signal_or_setting(tmp_path):
    assert interrupted(tmp_path, signal.SIGTERM) == 143
    assert interrupted(tmp_path, signal.SIGUSR1) == 0
    assert interrupted(tmp_path, signal.SIGTERM, exit_code=75) == 75
    assert interrupted(tmp_path, signal.SIGUSR1, exit_code=75) == 75


def test_interruption_by_both_signals_is_sigterm(tmp_path):
    assert interrupted(tmp_path, signal.SIGUSR1, signal.SIGTERM) == 143
    assert interrupted(tmp_path, signal.SIGTERM, signal.SIGUSR1) == 143


def test_interruption_note_says_where_the_run_stands(tmp_path):
    interrupted(tmp_path, signal.SIGUSR1)
    note = json.loads((tmp_path / "interrupted.json").read_text())
    assert note.pop("time") > 0
    assert note == {
        "reason": "SIGUSR1",
        "signal": "SIGUSR1",
        "step": 7,
        "checkpoint": "somewhere",
    }
    with Interruption(tmp_path, None):
        assert not list(tmp_path.iterdir())


def test_interruption_restores_the_handlers_of_signals(tmp_path):
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        interrupted(tmp_path, signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_interruption_takes_a_later_sigterm_for_an_end_at_once(tmp_path):
    script = f"""
import os, pathlib, signal
from megatron_resrl.training import interruption

with interruption.Interruption(pathlib.Path({str(tmp_path)!r}), None):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    print("goes on", flush=True)
    interruption.SAME_REQUEST_S = -1.0
    os.kill(os.getpid(), signal.SIGTERM)
    print("never said", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.stdout == "goes on\n"
    assert done.returncode == -signal.SIGTERM


def test_interruption_by_ctrl_c_in_a_step_is_like_sigterm(tmp_path, capfd):
    begin_step(7)
    try:
        assert interrupted(tmp_path, signal.SIGINT) == 130
        assert "this step is finished and saved" in capfd.readouterr().err
        assert interrupted(tmp_path, signal.SIGINT, signal.SIGTERM) == 143
        assert interrupted(tmp_path, signal.SIGINT, exit_code=75) == 75
        with Interruption(tmp_path, None):
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        start_heartbeat(dist.HashStore(), 0, 1)


def test_interruption_by_ctrl_c_before_step_1_ends_at_once(tmp_path):
    with Interruption(tmp_path, None), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_interruption_ignores_torchruns_repeated_ctrl_c(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    begin_step(7)
    try:
        assert interrupted(tmp_path, signal.SIGINT, signal.SIGINT) == 130
    finally:
        start_heartbeat(dist.HashStore(), 0, 1)
