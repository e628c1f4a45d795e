"""A run tells readers of its folder what it does, and how it began and ended."""

from __future__ import annotations

import json
import time

import pytest

from megatron_resrl.observe.status_file import StatusFile
from megatron_resrl.platform.phases import named_phase, progress

PROCESS = {"stage": "train", "host": "node1", "pid": 5, "job": "77", "restarts": 0}


def ended(error: BaseException | None) -> tuple[str, str | None]:
    return ("finished", None) if error is None else ("failed", str(error))


def test_status_file_follows_the_phase(tmp_path):
    with StatusFile(tmp_path, PROCESS, ended, interval_s=0.01) as status:
        status.begin(8, 2)
        status.finish_step(3)
        with named_phase("rollout"):
            progress(11, 16)
            while True:
                said = json.loads((tmp_path / "status.json").read_text())
                if said["phase"] == "rollout 11/16":
                    break
                time.sleep(0.01)
    assert (said["state"], said["steps"], said["steps_done"]) == ("running", 8, 3)
    assert said["stage"] == "train"
    assert said["phase_since"] <= said["time"] + 0.01
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


def test_status_file_keeps_starts_and_ends(tmp_path):
    with StatusFile(tmp_path, PROCESS, ended) as status:
        status.begin(8, 0)
        status.finish_step(3)
        status.begin(8, 2)

    def fail() -> None:
        with StatusFile(tmp_path, PROCESS, ended) as status:
            status.begin(8, 4)
            raise ValueError("too large")

    with pytest.raises(ValueError, match="too large"):
        fail()
    said = json.loads((tmp_path / "status.json").read_text())
    assert (said["state"], said["error"]) == ("failed", "too large")
    events = [json.loads(line) for line in (tmp_path / "history.jsonl").open()]
    assert [(each["event"], each["steps_done"]) for each in events] == [
        ("start", 0),
        ("rollback", 2),
        ("end", 2),
        ("start", 4),
        ("end", 4),
    ]
    assert {each["job"] for each in events} == {"77"}


def test_status_file_that_cannot_be_written_ends_no_run(tmp_path):
    with StatusFile(tmp_path / "gone", PROCESS, ended, interval_s=0.01) as status:
        status.begin(8, 0)
        time.sleep(0.05)
    assert not (tmp_path / "gone").exists()
