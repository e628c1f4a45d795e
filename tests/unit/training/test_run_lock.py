"""One run per output directory, whoever died and wherever."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from megatron_resrl.errors import InputError
from megatron_resrl.platform.run_files import LOCK
from megatron_resrl.platform.run_holder import born_at
from megatron_resrl.training import run_lock
from megatron_resrl.training.run_lock import FolderInUse, LockLost, RunLock


@pytest.fixture(autouse=True, scope="module")
def one_rank() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else starts at the same moment."""
    monkeypatch.setattr(run_lock, "_SETTLE_S", 0.0)


def change(directory: Path, **fields: Any) -> None:
    """Makes a lock another process's."""
    path = directory / LOCK
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def left_by(directory: Path, **fields: Any) -> None:
    """Leaves a lock as a process that was killed does."""
    with RunLock(directory):
        content = (directory / LOCK).read_text()
    (directory / LOCK).write_text(content)
    change(directory, token="of another run", **fields)


def test_run_lock_refuses_a_second_run_and_names_the_first(tmp_path):
    with RunLock(tmp_path / "new" / "run"):
        with pytest.raises(FolderInUse) as refused, RunLock(tmp_path / "new" / "run"):
            pass
        assert (tmp_path / "new" / "run" / LOCK).exists()
    said = str(refused.value)
    assert f"process {os.getpid()} on host {socket.gethostname()}, since 20" in said
    assert "choose another output_dir" in said
    with RunLock(tmp_path / "new" / "run"):
        pass
    assert not list((tmp_path / "new" / "run").iterdir())


def test_run_lock_is_released_by_an_error(tmp_path):
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reaped", [True, False])
def test_run_lock_of_a_killed_process_blocks_nobody(tmp_path, monkeypatch, reaped):
    monkeypatch.setattr(run_lock, "SILENCE_S", 1e6)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    left_by(tmp_path, pid=process.pid, born=born_at(process.pid))
    with pytest.raises(FolderInUse, match=f"process {process.pid} on"), RunLock(tmp_path):
        pass
    process.kill()
    if reaped:
        process.wait()
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with RunLock(tmp_path) as lock:
        lock.confirm()
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    process.wait()
    process.stdin.close()


def test_run_lock_is_not_held_by_a_reused_process_number(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "SILENCE_S", 1e6)
    left_by(tmp_path, born="1")
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("machine", [{"host": "elsewhere"}, {"machine": "another container"}])
def test_run_lock_of_another_host_blocks_while_it_has_heartbeats(tmp_path, monkeypatch, machine):
    monkeypatch.setattr(run_lock, "SILENCE_S", 600)
    left_by(tmp_path, **machine)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.2):
            os.utime(tmp_path / LOCK)

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(FolderInUse), RunLock(tmp_path):
        pass
    ended.set()
    thread.join()
    monkeypatch.setattr(run_lock, "SILENCE_S", 0.5)
    with RunLock(tmp_path):
        pass


def test_run_lock_lets_a_job_restarted_by_slurm_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "SILENCE_S", 1e6)
    left_by(tmp_path, host="elsewhere", job="77")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "h"}'])
def test_run_lock_that_names_nobody_is_watched_too(tmp_path, monkeypatch, content):
    monkeypatch.setattr(run_lock, "SILENCE_S", 0.5)
    (tmp_path / LOCK).write_text(content)
    with RunLock(tmp_path):
        pass


def test_run_lock_tells_a_run_that_its_folder_was_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT_INTERVAL_S", 0.01)
    with RunLock(tmp_path) as lock:
        change(tmp_path, token="of another run", pid=4711)
        lock._heartbeat._thread.join(60)
        with pytest.raises(LockLost, match="taken over by process 4711"):
            lock.confirm()
    assert (tmp_path / LOCK).exists()  # It is the other run's.


@pytest.mark.parametrize("given", [["--vllm.api_key", "s3 cret"], ["--vllm.api_key=s3 cret"]])
def test_keys_are_not_written_down(tmp_path, monkeypatch, given):
    monkeypatch.setattr(sys, "argv", ["train", *given, "--seed", "1"])
    with RunLock(tmp_path):
        text = (tmp_path / LOCK).read_text()
    assert "cret" not in text
    assert "--seed 1" in text


def test_heartbeats_change_the_time_of_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT_INTERVAL_S", 0.01)
    with RunLock(tmp_path):
        path = tmp_path / LOCK
        os.utime(path, (0, 0))
        while not path.stat().st_mtime:
            pass


def test_run_lock_names_a_place_without_directories(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"file.*cannot be written to"),
        RunLock(tmp_path / "file/a"),
    ):
        pass
