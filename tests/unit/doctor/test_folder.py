"""The output folder: what is tried in it, and what is judged from it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_resrl.doctor.facts.folder import FolderFacts, gather_folder, mount_of
from megatron_resrl.doctor.needs import Needs
from megatron_resrl.doctor.processes import NoAnswer, ask, within
from megatron_resrl.doctor.rules.folder import judge_folder, judge_folders

GB = 10**9
GOOD = FolderFacts(
    path="/scratch",
    kind="lustre",
    total=10**15,
    free=10**14,
    free_files=10**9,
    write=2e9,
    read=3e9,
    sync_s=1e-3,
    torn_renames=0,
    exclusive=True,
    locks={"flock": "holds", "lockf": "holds"},
    clock_ahead_s=0.01,
)
NEEDS = Needs(checkpoint=500 * GB, kept=1500 * GB)
ON_MOUNTS = """
import json, sys
from dataclasses import asdict
from megatron_resrl.doctor.facts.folder import gather_folder
print(json.dumps([asdict(gather_folder(path, quick=True)) for path in sys.argv[1:]]))
"""


def can_mount() -> bool:
    tried = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return tried.returncode == 0


@contextlib.contextmanager
def mounted_image(folder: Path) -> Iterator[Path]:
    """A small file system of its own."""
    image, mount = folder / "image", folder / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(2**24)
    for command in (["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, mount]):
        subprocess.run(command, capture_output=True, check=True)
    try:
        yield mount
    finally:
        # A process that was killed while it hung ends a moment after it can go on.
        until = time.monotonic() + 30
        while subprocess.run(["umount", mount], capture_output=True, check=False).returncode:
            assert time.monotonic() < until
            time.sleep(0.1)


def can_freeze() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted_image(Path(folder)):
                return shutil.which("fsfreeze") is not None
        except (OSError, subprocess.CalledProcessError):
            return False


def test_folder_that_is_well_has_no_findings():
    assert list(judge_folder(GOOD, NEEDS)) == []


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"failure": "Permission denied"}, "folder.unusable"),
        ({"free": 400 * GB}, "folder.full"),
        ({"free": 1000 * GB}, "folder.full"),
        ({"free_files": 12}, "folder.files"),
        ({"kind": "tmpfs"}, "folder.in_memory"),
        ({"kind": "overlay"}, "folder.in_container"),
        ({"torn_renames": 3}, "folder.rename"),
        ({"exclusive": False}, "folder.exclusive"),
        ({"locks": {"flock": "Function not implemented", "lockf": "holds"}}, "folder.lock"),
        ({"clock_ahead_s": -30.0}, "folder.clock"),
        ({"write": 1e9}, "folder.slow"),
        ({"sync_s": 0.5}, "folder.sync"),
    ],
)
def test_folder_has_one_finding_for_one_fault(changes, rule):
    facts = dataclasses.replace(GOOD, **changes)
    assert [each.rule for each in judge_folder(facts, NEEDS)] == [rule]


def test_folder_that_one_host_writes_slowly_names_the_host():
    slow = dataclasses.replace(GOOD, write=1e8)
    (found,) = judge_folders({"a": GOOD, "b": slow, "c": GOOD}, Needs())
    assert (found.rule, found.where) == ("folder.uneven", "host b")


def test_folder_on_a_local_disk_keeps_what_posix_promises(tmp_path: Path):
    facts = gather_folder(str(tmp_path / "not" / "there" / "yet"), quick=True)
    assert facts.failure is None
    assert facts.path == str(tmp_path)
    assert (facts.torn_renames, facts.exclusive) == (0, True)
    assert facts.locks == {"flock": "holds", "lockf": "holds"}
    assert facts.write > 0
    assert facts.read > 0
    assert facts.total >= facts.free > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount file systems")
def test_folder_that_is_full_or_read_only_says_so(tmp_path: Path):
    for name in ("full", "read_only"):
        (tmp_path / name).mkdir()
    script = f"""
        mount -t tmpfs -o size=2m none {tmp_path}/full
        head -c 2M /dev/zero > {tmp_path}/full/rest
        mount -t tmpfs -o ro none {tmp_path}/read_only
        exec {sys.executable} -c '{ON_MOUNTS}' {tmp_path}/full {tmp_path}/read_only
    """
    said = ask(["unshare", "-m", "sh", "-ec", script], 60)
    assert said.failure is None
    full, read_only = (FolderFacts(**each) for each in json.loads(said.output))
    assert (full.kind, full.free) == ("tmpfs", 0)
    assert full.failure == "No space left on device"
    assert read_only.failure == "Read-only file system"
    found = {each.rule for each in judge_folder(full, Needs())}
    assert found == {"folder.unusable", "folder.full", "folder.in_memory"}


@pytest.mark.skipif(not can_freeze(), reason="needs the right to mount a file system from a file")
def test_folder_that_hangs_is_given_up(tmp_path: Path):
    """A frozen file system: writing waits in the kernel, where not even SIGKILL ends it."""
    with mounted_image(tmp_path) as mount:
        subprocess.run(["fsfreeze", "-f", mount], check=True)
        thaw = threading.Timer(8, subprocess.run, [["fsfreeze", "-u", str(mount)]])
        thaw.start()
        try:
            facts = gather_folder(str(mount), quick=True, limit_s=2)
        finally:
            thaw.join()
    assert facts.failure == "no answer within 2 s, while a file was written"
    assert (facts.path, facts.kind) == (str(mount), "ext4")


def test_mount_of_a_path_is_the_innermost():
    table = (
        "/dev/sda / ext4 rw 0 0\nserver:/a /data nfs4 rw 0 0\nnone /data/my\\040runs tmpfs rw 0 0"
    )
    assert mount_of(Path("/data/x"), table) == ("nfs4", "/data")
    assert mount_of(Path("/database"), table) == ("ext4", "/")
    assert mount_of(Path("/data/my runs/1"), table) == ("tmpfs", "/data/my runs")


def test_ask_ends_a_process_that_hangs_with_its_children(tmp_path: Path):
    alive = tmp_path / "alive"
    script = f"echo '{{\"first\": 1}}'; (sleep 1; touch {alive}) & sleep 60"
    started = time.monotonic()
    said = ask(["sh", "-c", script], 0.5)
    assert time.monotonic() - started < 30
    assert said.objects == [{"first": 1}]
    assert said.failure == "no answer within 0.5 s"
    time.sleep(1)
    assert not alive.exists()


def test_ask_keeps_only_json_objects_among_the_lines():
    said = ask(["sh", "-c", "echo NCCL version 2.27; echo '{\"a\": 2}'; echo 3; exit 4"], 10)
    assert (said.objects, said.failure) == ([{"a": 2}], "ended with status 4")


def test_within_returns_raises_or_gives_up():
    assert within(10, lambda: 7) == 7
    with pytest.raises(KeyError):
        within(10, lambda: {}["x"])
    with pytest.raises(NoAnswer, match="no answer within"):
        within(0.1, threading.Event().wait)
