"""The output directory is looked at before a run starts, and nothing is made there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file


def test_output_dir_that_can_be_made_passes(check, tmp_path):
    assert check(f"--output_dir={tmp_path / 'a' / 'b' / 'c'}") == []
    assert not (tmp_path / "a").exists()


def test_output_dir_names_a_file_on_the_way(refused, tmp_path):
    (tmp_path / "file").write_text("")
    for path in ("file", "file/run", "file/a/run"):
        problem = refused(f"--output_dir={tmp_path / path}")
        assert problem.setting == "output_dir"
        assert f"{tmp_path / 'file'} is a file" in problem.problem


def test_output_dir_names_a_link_to_nowhere(refused, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    problem = refused(f"--output_dir={tmp_path / 'link' / 'run'}")
    assert f"link to {tmp_path / 'gone'}, which is gone" in problem.problem


def test_output_dir_with_a_name_too_long_is_refused(refused, tmp_path):
    assert "no path can be like this" in refused(f"--output_dir={tmp_path / ('a' * 300)}").problem


def test_output_dir_of_another_user_is_refused(refused, tmp_path):
    if os.geteuid() == 0:
        place = _read_only_mount(tmp_path)
    else:
        place = tmp_path / "closed"
        place.mkdir(mode=0o500)
    try:
        problem = refused(f"--output_dir={place / 'run'}")
        assert f"{place} cannot be written to" in problem.problem
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(place)], check=True)


def _read_only_mount(directory: Path) -> Path:
    place = directory / "mounted"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the superuser may write anywhere, and cannot mount here: {done.stderr}")
    return place


def test_output_dir_where_no_directory_can_be_made_is_refused(refused):
    if not Path("/proc/self").is_dir():
        pytest.skip("there is no /proc, where nobody can make a directory")
    assert "/proc cannot be written to" in refused("--output_dir=/proc/run").problem


def test_output_dir_without_room_for_a_checkpoint_is_named(refused, tmp_path, model, monkeypatch):
    usage = type("Usage", (), {"free": 100_000, "total": 200_000})
    monkeypatch.setattr("megatron_resrl.checks.output.shutil.disk_usage", lambda _: usage)
    problem = refused("--precision.params_dtype=fp32")
    assert problem.setting == "output_dir"
    assert "no space left for a checkpoint" in problem.problem
    # Weights, which are their own masters, and two moments.
    size = 12 * sum(each.numel() for each in load_file(model / "model.safetensors").values())
    assert f"100 kB free, needs {size / 1e3:.3g} kB" in problem.problem
