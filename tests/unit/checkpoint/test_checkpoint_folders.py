"""Which checkpoint counts: markers, retention, damage, and kills at every file operation."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import types
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as torch_checkpoint

from megatron_resrl.checkpoint.checksums import read_sums
from megatron_resrl.checkpoint.folders import (
    CheckpointError,
    begin,
    check_whole,
    latest_checkpoint,
    publish,
)
from megatron_resrl.checkpoint.retention import Retention


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real shard files with their index, as every rank's part of a checkpoint."""
    folder = tmp_path_factory.mktemp("shards")
    state = {"weight": torch.arange(1000.0), "bias": torch.ones(7)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch_checkpoint.save(state, checkpoint_id=folder, no_dist=True)
    (folder / "metadata.json").write_text("{}")
    (folder / "common.pt").write_bytes(b"common")
    return folder


def write(
    output_dir: Path, step: int, shards: Path, keep_last: int = 2, score: float = 0.0, **rules
) -> Path:
    folder = begin(output_dir, step)
    for file in shards.iterdir():
        shutil.copy(file, folder)
    trainer = {"step": step, "metrics": {"score": score}}
    return publish(folder, trainer, {}, Retention(keep_last, **rules))


def names(output_dir: Path) -> list[str]:
    return sorted(path.name for path in (output_dir / "checkpoints").iterdir())


def test_latest_checkpoint_is_none_without_checkpoints(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    begin(tmp_path, 1)
    assert latest_checkpoint(tmp_path) is None


def test_keep_last_keeps_the_newest_checkpoints(tmp_path, shards):
    for step in (1, 2, 3, 10):
        path = write(tmp_path, step, shards)
        assert latest_checkpoint(tmp_path) == path
    assert names(tmp_path) == ["latest", "step_000003", "step_000010"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_000010\n"


def test_keep_every_and_the_best_are_kept_and_marked(tmp_path, shards):
    rules = {"keep_every": 4, "best_metric": "score"}
    for step, score in zip(
        range(1, 10), (0.1, 0.2, 0.9, 0.3, 0.9, 0.8, 0.1, 0.2, 0.3), strict=True
    ):
        write(tmp_path, step, shards, keep_last=1, score=score, **rules)
    kept = [f"step_{step:06d}" for step in (3, 4, 8, 9)]
    assert names(tmp_path) == ["best", "latest", *kept]
    assert (tmp_path / "checkpoints" / "best").read_text() == "step_000003\n"
    write(tmp_path, 10, shards, keep_last=1, score=0.95, **rules)
    kept = [f"step_{step:06d}" for step in (4, 8, 10)]
    assert names(tmp_path) == ["best", "latest", *kept]
    assert (tmp_path / "checkpoints" / "best").read_text() == "step_000010\n"


def test_save_names_a_disk_without_room_before_writing(tmp_path, shards, monkeypatch):
    latest = write(tmp_path, 1, shards)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match=r"no space left .*1e-06 GB free.*keep_last"):
        begin(tmp_path, 2)
    assert latest_checkpoint(tmp_path) == latest


def test_checksums_are_those_of_sha256sum(tmp_path, shards):
    path = write(tmp_path, 1, shards)
    check = subprocess.run(
        ["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=path, capture_output=True, text=True
    )
    assert check.returncode == 0, check.stdout + check.stderr
    assert set(read_sums(path)) == {p.name for p in path.iterdir()} - {"SHA256SUMS"}


@pytest.mark.parametrize("left", [0, 0.5])
def test_sizes_show_a_file_that_was_emptied_or_cut(tmp_path, shards, left):
    older = write(tmp_path, 1, shards)
    newest = write(tmp_path, 2, shards)
    files = [path for path in newest.rglob("*") if path.is_file()]
    assert len(files) == len(list(shards.iterdir())) + 3
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[: int(left * len(content))])
        with pytest.raises(CheckpointError, match=re.escape(file.name)):
            check_whole(newest)
        assert latest_checkpoint(tmp_path) == older
        file.write_bytes(content)
        check_whole(newest)


def test_sizes_that_are_missing_leave_a_checkpoint_whole(tmp_path, shards):
    path = write(tmp_path, 1, shards)
    (path / "sizes.json").unlink()
    check_whole(path)
    (path / "common.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"common\.pt has 0 of"):
        check_whole(path)


def test_save_deletes_what_a_killed_run_left(tmp_path, shards):
    whole = write(tmp_path, 1, shards)
    shutil.copytree(whole, whole.with_name("step_000002.incomplete"))
    shutil.copytree(whole, whole.with_name("step_000000.removed"))
    assert latest_checkpoint(tmp_path) == whole
    write(tmp_path, 3, shards)
    assert names(tmp_path) == ["latest", "step_000001", "step_000003"]


def test_save_leaves_other_folders_alone(tmp_path, shards):
    write(tmp_path, 1, shards)
    mine = tmp_path / "checkpoints" / "best.incomplete"
    mine.mkdir()
    write(tmp_path, 2, shards, keep_last=1)
    assert mine.is_dir()


def test_save_replaces_the_same_step(tmp_path, shards):
    first = write(tmp_path, 4, shards)
    (first / "old").touch()
    second = write(tmp_path, 4, shards)
    assert first == second == latest_checkpoint(tmp_path)
    assert not (second / "old").exists()
    assert names(tmp_path) == ["latest", "step_000004"]


def test_checkpoint_folders_keep_later_steps_of_another_run(tmp_path, shards):
    write(tmp_path, 90, shards)
    for step in (10, 20, 30):
        path = write(tmp_path, step, shards, keep_last=1)
        assert latest_checkpoint(tmp_path) == path
    assert names(tmp_path) == ["latest", "step_000030", "step_000090"]


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        (None, "latest is missing"),
        (b"", "names 'checkpoints', which is not there"),
        (b"\xff\x00\xfe", "which is not there"),
        (b"step_000007", "names 'step_000007', which is not there"),
        (b"../../elsewhere", "names 'elsewhere', which is not there"),
        (b"step_000001.incomplete", "names 'step_000001.incomplete', which is not there"),
    ],
)
def test_latest_checkpoint_without_a_marker_is_the_newest_whole(
    tmp_path, shards, caplog, marker, said
):
    write(tmp_path, 1, shards)
    newest = write(tmp_path, 2, shards)
    file = tmp_path / "checkpoints" / "latest"
    file.unlink() if marker is None else file.write_bytes(marker)
    assert latest_checkpoint(tmp_path) == newest
    assert said in caplog.text
    assert "newest whole checkpoint" in caplog.text


def _truncate_shard(path: Path) -> None:
    shard = next(path.glob("*.distcp"))
    os.truncate(shard, shard.stat().st_size // 2)


def _remove_shard(path: Path) -> None:
    next(path.glob("*.distcp")).unlink()


def _garble_index(path: Path) -> None:
    (path / ".metadata").write_bytes(b"\x80\x04 not a pickle")


def _remove_trainer_file(path: Path) -> None:
    (path / "trainer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_truncate_shard, "distcp has "),
        (_remove_shard, "distcp is missing"),
        (_garble_index, ".metadata cannot be read"),
        (_remove_trainer_file, "lacks trainer.json"),
    ],
)
def test_latest_checkpoint_skips_and_names_a_damaged_one(tmp_path, shards, caplog, damage, said):
    older = write(tmp_path, 1, shards)
    newest = write(tmp_path, 2, shards)
    damage(newest)
    with pytest.raises(CheckpointError, match=said) as raised:
        check_whole(newest)
    assert str(newest) in str(raised.value)
    assert latest_checkpoint(tmp_path) == older
    assert said in caplog.text
    damage(older)
    assert latest_checkpoint(tmp_path) is None


def test_checkpoint_that_is_missing_or_cut_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="step_000009 does not exist"):
        check_whole(tmp_path / "step_000009")
    with pytest.raises(CheckpointError, match="was not written to its end"):
        check_whole(begin(tmp_path, 9))


def test_save_never_publishes_shards_that_rank_0_lacks(tmp_path, shards):
    folder = begin(tmp_path, 1)
    shutil.copytree(shards, folder, dirs_exist_ok=True)
    _remove_shard(folder)
    with pytest.raises(CheckpointError, match="a file system that all hosts share"):
        publish(folder, {}, {}, Retention(1))
    assert latest_checkpoint(tmp_path) is None


def test_save_killed_anywhere_leaves_a_whole_checkpoint(tmp_path, shards, caplog):
    """Writes step 4 where 1 and 3 are, replacing an older 4, and is killed before the n-th call."""
    caplog.set_level(logging.ERROR)
    for step in (1, 4, 3):
        write(tmp_path / "before", step, shards)
    counts = {"1": 0, "3": 0, "4": 0}
    for kill_at in range(1000):
        output_dir = shutil.copytree(tmp_path / "before", tmp_path / str(kill_at))
        killed = _killed_at(kill_at, output_dir, shards)
        found = latest_checkpoint(output_dir)
        check_whole(found)
        counts[found.name[-1]] += 1
        assert write(output_dir, 5, shards) == latest_checkpoint(output_dir)
        left = names(output_dir)
        assert not [name for name in left if "." in name and name != "latest.new"]
        if not killed:
            break
    else:
        pytest.fail("the child never finished")
    # Before the rename the marker's checkpoint counts, after the marker's replacement the new one.
    assert counts["3"] > 3
    assert counts["4"] > 3
    assert counts["1"] == 0


def _killed_at(number: int, output_dir: Path, shards: Path) -> bool:
    """Writes step 4 in a child that dies before its `number`-th file operation, if any."""
    child = os.fork()
    if child == 0:
        try:
            _die_before(number)
            write(output_dir, 4, shards, keep_last=2)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _die_before(number: int) -> None:
    done = 0

    def mortal(operation):
        def call(*args, **kwargs):
            nonlocal done
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            return operation(*args, **kwargs)

        return call

    for name in ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir"):
        setattr(os, name, mortal(getattr(os, name)))
