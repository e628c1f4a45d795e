"""The folder of a run tells how it is getting on: alive, killed or ended."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from megatron_resrl.errors import InputError
from megatron_resrl.platform.run_holder import Holder, born_at, this_machine
from megatron_resrl.status.folder import read_checkpoints, read_status, seconds_per_step
from megatron_resrl.status.report import duration, report


def holder(pid: int, **changes: Any) -> Holder:
    own = {
        "host": socket.gethostname(),
        "pid": pid,
        "started": time.time() - 60,
        "command": "megatron-resrl train recipe.yaml",
        "machine": this_machine(),
        "born": born_at(pid) or "",
        "token": "a",
    }
    return Holder(**own | changes)


def write_run(folder: Path, lock: Holder | None = None, **status: Any) -> Path:
    """A folder as a run of 100 steps has it after step 12."""
    folder.mkdir(exist_ok=True)
    now = time.time()
    lines = [
        {"step": step, "time": now - 4 * (12 - step), "loss": 2.0 / (step + 1), "grad_norm": None}
        for step in range(13)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = {"state": "running", "stage": "sft", "steps": 100, "phase": "update 2/4", "time": now}
    (folder / "status.json").write_text(json.dumps(said | status))
    if lock is not None:
        (folder / "run.lock").write_text(json.dumps(asdict(lock)))
    return folder


def write_checkpoint(run: Path, step: int, *, noted: int = 100, written: int = 100) -> None:
    folder = run / "checkpoints" / f"step_{step:06d}"
    folder.mkdir(parents=True)
    (folder / "shard").write_bytes(b"x" * written)
    (folder / "sizes.json").write_text(json.dumps({"shard": noted}))
    (folder.parent / "latest").write_text(f"{folder.name}\n")


def test_status_of_a_live_run_has_step_and_time_left(tmp_path):
    status = read_status(write_run(tmp_path / "run", holder(os.getpid())))
    assert (status.state, status.stage, status.step, status.steps) == ("running", "sft", 12, 100)
    assert status.phase == "update 2/4"
    assert status.metrics == {"loss": pytest.approx(2 / 13), "grad_norm": None}
    assert status.seconds_per_step == pytest.approx(4)
    assert status.seconds_left == pytest.approx(88 * 4)
    assert status.sign_of_life_age_s is not None
    text = report(status, "RUNNING, 1:00 left, node1")
    assert "step         12 of 100, 4.0 s per step, 6 min left" in text
    assert "grad_norm not finite" in text


def test_status_tells_a_killed_run_from_a_live_one(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run = write_run(tmp_path / "run", holder(process.pid))
    assert read_status(run).state == "running"
    process.kill()
    process.wait()
    assert read_status(run).state == "killed"
    # Another process with the same number is not the run.
    write_run(run, holder(os.getpid(), born="1"))
    assert read_status(run).state == "killed"


def test_status_of_another_host_goes_by_signs_of_life(tmp_path):
    run = write_run(tmp_path / "run", holder(1, host="node7", machine="other"))
    assert read_status(run).state == "running"
    found = read_status(run, now=time.time() + 300)
    assert found.state == "silent"
    assert found.sign_of_life_age_s == pytest.approx(300, abs=60)
    assert found.process["host"] == "node7"
    assert "last sign of life 5 min ago" in report(found)


@pytest.mark.parametrize(
    ("file", "said", "state"),
    [
        ("finished.json", {"state": "finished"}, "finished"),
        (
            "interrupted.json",
            {"state": "interrupted", "error": "SIGTERM: the run en"},
            "interrupted",
        ),
        (None, {"state": "failed", "error": "step 9: the loss"}, "failed"),
        (None, {}, "killed"),
    ],
)
def test_status_of_an_ended_run_says_how_it_ended(tmp_path, file, said, state):
    run = write_run(tmp_path / "run", **said)
    if file is not None:
        (run / file).write_text("{}\n")
    found = read_status(run)
    assert found.state == state
    assert found.error == said.get("error")
    assert found.seconds_left is None


def test_status_counts_starts_and_failures(tmp_path):
    run = write_run(tmp_path / "run", holder(os.getpid()))
    events = [
        {"event": "start"},
        {"event": "end", "state": "interrupted"},
        {"event": "start"},  # Killed.
        {"event": "start"},
        {"event": "end", "state": "failed"},
        {"event": "start"},  # Runs.
        {"event": "rollback"},
    ]
    (run / "history.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events) + '{"ev')
    rollback = {"step": 9, "to": 6, "reason": "loss is 4", "sampler": {}, "extra": {}}
    (run / "rollbacks.jsonl").write_text(json.dumps(rollback) + "\n")
    found = read_status(run)
    assert (found.starts, found.interruptions, found.failures) == (4, 1, 2)
    assert found.rollbacks == [{"step": 9, "to": 6, "reason": "loss is 4"}]
    assert "4 starts, 1 interruptions, 2 failures" in report(found)
    assert "from step 9 to 6: loss is 4" in report(found)


def test_status_names_damaged_checkpoints(tmp_path):
    run = write_run(tmp_path / "run")
    write_checkpoint(run, 5)
    write_checkpoint(run, 10, written=60)
    (run / "checkpoints" / "step_000015.incomplete").mkdir()
    first, second = read_checkpoints(run / "checkpoints")
    assert (first.step, first.whole, first.marks) == (5, True, ())
    assert (second.step, second.whole, second.marks) == (10, False, ("latest",))
    assert second.num_bytes > 60
    assert "step 10, 7.4e-08 GB, latest, DAMAGED" in report(read_status(run))


def test_seconds_per_step_ignore_a_restart():
    times = [0, 10, 20, 5000, 5010, 5020]
    lines = [{"step": step, "time": when + 1.0} for step, when in enumerate(times, start=1)]
    assert seconds_per_step(lines) == 10
    assert seconds_per_step(lines[:1]) is None
    assert seconds_per_step([]) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "3 s"), (100, "2 min"), (12000, "3 h 20 min"), (187200, "2 d 4 h"), (3599, "1 h 0 min")],
)
def test_duration_is_short(seconds, words):
    assert duration(seconds) == words


def test_status_refuses_a_folder_without_a_run(tmp_path):
    with pytest.raises(InputError, match="no run has written here"):
        read_status(tmp_path)


def test_status_command_needs_no_torch(tmp_path):
    run = write_run(tmp_path / "run", holder(os.getpid()))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output_dir: {run}\n")
    script = """
import sys
from megatron_resrl.cli import main
status = main(["status", *sys.argv[1:]])
assert "torch" not in sys.modules
sys.exit(status)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        [*command, str(recipe), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert (content["state"], content["step"]) == ("running", 12)
    assert content["folder"] == str(run)
    done = subprocess.run(
        [*command, str(run), "--jsn"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "did you mean --json?" in done.stderr
