"""What follows the end of a job: done, again, or failed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_resrl.launch.verdict import AGAIN, DONE, FAILED, End, History, judge, main, read_end


def end(**changes) -> End:
    values = {"stage": "train", "status": 1, "finished": False, "interrupted": False, "step": 4}
    return End(**values | changes)


def saved(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)


def failure(logs: Path, name: str, time: float, **extra) -> None:
    place = {"rank": 1, "host": "n2", "local_rank": 0, "gpu": None}
    extra = {"kind": "crash", "time": time, "place": place} | extra
    logs.mkdir(parents=True, exist_ok=True)
    content = {"message": {"message": extra.pop("message", "broke"), "extraInfo": extra}}
    (logs / name).write_text(json.dumps(content))


def test_verdict_of_a_finished_run_is_done() -> None:
    assert judge(end(status=0, finished=True), History(), 3, 0).status == DONE
    assert judge(end(status=0, stage="eval"), History(), 3, 0).status == DONE


def test_verdict_of_a_saved_run_is_again() -> None:
    verdict = judge(end(status=0, interrupted=True), History("7", 2, 2), 3, 0)
    assert (verdict.status, verdict.history) == (AGAIN, History("7", 4, 0))
    assert "saved after step 4" in verdict.sentence


def test_verdict_without_requeue_is_failed() -> None:
    verdict = judge(end(status=0, interrupted=True), History(), 0, 0)
    assert verdict.status == FAILED
    assert "submit it again to continue" in verdict.sentence


def test_verdict_gives_up_without_progress() -> None:
    history, answers = History("7"), []
    for step in (4, 4, 4, 6, 6, 6, 6):
        verdict = judge(end(step=step), history, 2, 0)
        history = verdict.history
        answers.append(verdict.status)
    assert answers == [AGAIN] * 6 + [FAILED]
    assert "given up after 2 starts without a new checkpoint" in verdict.sentence


def test_verdict_of_input_that_cannot_be_used_is_failed() -> None:
    assert judge(end(hopeless=True), History(), 3, 0).status == FAILED


def test_verdict_leaves_broken_hosts_out() -> None:
    first = judge(end(broken_hosts=("n2",)), History(), 3, spare_nodes=2)
    second = judge(end(broken_hosts=("n3", "n2"), step=5), first.history, 3, spare_nodes=2)
    assert second.history.excluded == ("n2", "n3")
    # The job needs the rest.
    third = judge(end(broken_hosts=("n4",), step=6), second.history, 3, spare_nodes=2)
    assert third.history.excluded == ("n2", "n3")
    assert judge(end(broken_hosts=("n2",)), History(), 3, spare_nodes=0).history.excluded == ()


def test_read_end_names_who_failed_first(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    saved(tmp_path, 12)
    logs = tmp_path / "logs"
    failure(logs / "node-0" / "attempt_0" / "0", "error.json", 20.0, message="timed out")
    failure(logs, "error-1.json", 10.0, message="CUDA error: uncorrectable ECC error")
    failure(logs, "error-2.json", 15.0, kind="run", lost_hosts=["n7"])
    (logs / "error-3.json").write_text("{")
    found = read_end("train", tmp_path, 1, logs)
    assert found.step == 12
    place = "rank 1 (host n2, local rank 0)"
    assert found.reason == f"{place}: CUDA error: uncorrectable ECC error"
    assert found.broken_hosts == ("n2", "n7")
    assert not found.hopeless
    failure(logs, "error-0.json", 1.0, kind="input", message="steps = 0: out of range")
    assert read_end("train", tmp_path, 2, logs).hopeless


def test_verdict_counts_the_ends_of_one_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    failure(logs, "error-1.json", 10.0, lost_hosts=["n7"])
    asked = ["train", str(tmp_path), "--status=1", f"--logs={logs}", "--requeue=1", "--spare=4"]
    monkeypatch.setenv("SLURM_JOB_ID", "31")
    assert main([*asked, "--exclude=n[1-2]"]) == AGAIN
    said = capsys.readouterr()
    assert said.out == "n[1-2],n7\n"
    assert said.err.startswith("job 31: the run ended with status 1")
    assert main(asked) == FAILED
    monkeypatch.setenv("SLURM_JOB_ID", "32")  # The user has submitted it again.
    assert main(asked) == AGAIN


def test_verdict_on_a_full_disk_is_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slurm").write_text("in the place of the folder")
    asked = ["train", str(tmp_path), "--status=1", f"--logs={tmp_path}", "--requeue=3"]
    assert main(asked) == FAILED
    assert "requeues.json cannot be written" in capsys.readouterr().err


def test_verdict_imports_no_torch() -> None:
    script = "import sys, megatron_resrl.launch.verdict; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
