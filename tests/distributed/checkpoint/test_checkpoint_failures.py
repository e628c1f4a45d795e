"""What goes wrong is named on every rank, and never costs the last good checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_checkpoint as tiny
from ranks import REPOSITORY, run_ranks

from megatron_resrl.checkpoint import latest_checkpoint
from megatron_resrl.checkpoint.folders import begin, check_whole

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny models."""
    return tiny.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def seen(models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two ranks saw."""
    work = tmp_path_factory.mktemp("failures")
    out = run_ranks(HERE / "ranks_checkpoint_failures.py", 2, models, work)
    line = next(line for line in out.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        (
            "other model",
            ("CheckpointError", "of another model than model.path", "hidden_size is 32 there"),
        ),
        (
            "other optimizer",
            ("CheckpointError", "parallel.use_distributed_optimizer is True there"),
        ),
        ("other precision", ("CheckpointError", "precision.params_dtype is 'float32' there")),
        ("missing", ("CheckpointError", "step_000077 does not exist")),
        ("not JSON", ("ValueError", "cannot be written as JSON", "set")),
        ("saving it", ("ValueError", "built with an optimizer")),
        ("full disk", ("CheckpointError", "could not be written", "File too large")),
        (
            "full disk in the background",
            ("CheckpointError", "step_000002.incomplete could not be written", "File too large"),
        ),
    ],
)
def test_save_raises_its_error_on_every_rank(seen, case, parts):
    for rank in seen:
        for part in parts:
            assert part in rank[case]


def test_save_refuses_a_state_that_is_not_json(seen):
    assert not any(rank["written all the same"] for rank in seen)


def test_save_on_a_full_disk_costs_no_checkpoint(seen):
    assert all(rank["still latest"] and rank["then"] for rank in seen)


def test_saver_goes_on_after_a_save_that_failed(seen):
    for rank in seen:
        assert rank["saved"] == [1, 3, 4]
        # The save of step 4 waited for that of step 3; its own is completed by the poll after it.
        assert rank["times"] == [["blocking", "write"], [], ["write"]]


def test_saver_of_a_failing_run_writes_its_checkpoint(seen):
    error = "no more questions"
    for rank in seen:
        ended = rank["ended by an error"]
        assert ended["nothing to save"] == [error, [], False, None]
        assert ended["saved"] == [error, [], False, "step_000002"]
        *others, writing, written = ended["endless"]
        assert others == [
            error,
            ["the checkpoint in progress is lost: it is not written after 5.5 s"],
        ]
        assert (writing, written) == (True, "step_000002")


def test_saver_keeps_the_error_of_the_run_where_a_save_fails(seen):
    for rank in seen:
        error, (said,), writing, written = rank["ended by an error"]["disk full"]
        assert error == "no more questions"
        assert said.startswith("the checkpoint in progress is lost: ")
        assert "File too large" in said
        assert (writing, written) == (False, None)


def test_resume_takes_the_newest_undamaged_checkpoint(seen):
    for rank in seen:
        newest, without_checksums, second, third, none = rank["resuming"]
        assert newest == without_checksums == "step_000004"
        assert [second, third] == ["step_000003", "step_000001"]
        assert none.startswith("CheckpointError: every checkpoint in ")
        assert "step_000004 is damaged: __1_0.distcp differs from its checksum" in none
        assert "step_000001: __0_0.distcp has 1000 of" in none


def test_load_gives_a_policy_without_optimizer_the_weights(seen):
    assert all(rank["weights only"] == [False, True] for rank in seen)


def test_resume_applies_and_logs_changed_optimizer_settings(seen):
    for rank in seen:
        assert rank["learning rate"] == 3e-2
        assert rank["weight decays"] == [0.0, 0.5]
    said = " ".join(seen[0]["warnings"])
    assert "max_lr was 0.01 in the checkpoint; the recipe's 0.03 is used" in said
    assert "start_wd was 0.1 in the checkpoint; the recipe's 0.5 is used" in said
    assert not seen[1]["warnings"]


def test_resume_from_before_the_first_step_is_bitwise(seen):
    assert all(rank["before the first step"] == [True, True] for rank in seen)


def test_save_that_is_killed_leaves_the_previous_latest(models, tmp_path):
    """SIGKILL the moment a shard file of a new checkpoint appears; again if the save was faster."""
    for attempt in range(5):
        output_dir = tmp_path / str(attempt)
        _kill_while_saving(models / "qwen3", output_dir)
        half = next((output_dir / "checkpoints").glob("*.incomplete"), None)
        if half is not None:
            break
    else:
        pytest.fail("every save ended before the kill")
    assert list(half.glob("*.distcp"))
    latest = latest_checkpoint(output_dir)
    check_whole(latest)
    assert int(latest.name[5:]) == int(half.stem[5:]) - 1
    begin(output_dir, 99)
    assert not half.exists()


def _kill_while_saving(model: Path, output_dir: Path) -> None:
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    process = subprocess.Popen(
        [sys.executable, HERE / "endless_saver.py", model, output_dir],
        env=dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=path),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    first = output_dir / "checkpoints" / "latest"
    try:
        while not (first.exists() and list(output_dir.glob("checkpoints/*.incomplete/*.distcp"))):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "no second save within two minutes"
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()
