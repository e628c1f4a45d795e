"""Files written past the page cache hold what was written, whatever their file system can do."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from pathlib import Path

import pytest

from megatron_resrl.checkpoint import direct_files
from megatron_resrl.checkpoint.direct_files import DirectFile

BUFFER = 8192
MEMORY = Path("/dev/shm")  # A file system without a disk, on Linux.


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_files, "_BUFFER_BYTES", BUFFER)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([], id="nothing"),
        pytest.param([1], id="one_byte"),
        pytest.param([BUFFER], id="one_buffer"),
        pytest.param([4096], id="one_block"),
        pytest.param([BUFFER - 1, 2, 3 * BUFFER], id="across_buffers"),
        pytest.param([10 * BUFFER + 4097], id="large"),
        pytest.param([0, 700, 5000, 0, 4096, 33], id="many"),
    ],
)
def test_direct_file_holds_what_was_written(tmp_path: Path, sizes: list[int]) -> None:
    _write_and_compare(tmp_path / "file", sizes)


@pytest.mark.skipif(not MEMORY.is_dir(), reason="there is no /dev/shm")
def test_direct_file_on_a_file_system_in_memory() -> None:
    path = MEMORY / f"direct_file_{os.getpid()}"
    try:
        _write_and_compare(path, [3 * BUFFER + 5, 17])
    finally:
        path.unlink(missing_ok=True)


def test_direct_file_replaces_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10 * BUFFER))
    _write_and_compare(tmp_path / "file", [100])


def test_direct_file_takes_other_buffers(tmp_path: Path) -> None:
    floats = memoryview(bytearray(BUFFER * 2)).cast("f")
    with DirectFile(tmp_path / "file") as file:
        assert file.write(floats) == BUFFER * 2
        assert file.write(bytearray(b"end")) == 3
    assert (tmp_path / "file").read_bytes() == bytes(BUFFER * 2) + b"end"


def test_direct_file_is_whole_once_its_descriptor_is_asked_for(tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    with DirectFile(tmp_path / "file") as file:
        file.write(content)
        os.fsync(file.fileno())
        assert (tmp_path / "file").read_bytes() == content
        file.write(content)
    assert (tmp_path / "file").read_bytes() == content + content


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no direct writes")
def test_direct_file_goes_on_where_direct_writes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.write, []

    def write(descriptor: int, content: memoryview) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(len(content))
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, content)

    monkeypatch.setattr(os, "write", write)
    _write_and_compare(tmp_path / "file", [3 * BUFFER + 5])
    assert len(refused) <= 1  # None on a file system that refuses the flag.


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no direct writes")
def test_direct_file_goes_on_after_a_short_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: real(descriptor, content[:4096]))
    _write_and_compare(tmp_path / "file", [2 * BUFFER + 100])


def test_direct_file_raises_what_the_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        DirectFile(tmp_path / "missing" / "file")
    file = DirectFile(tmp_path / "file")

    def full(descriptor: int, content: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        file.write(bytes(BUFFER))
    with pytest.raises(OSError, match="No space left"):
        file.close()
    assert file.closed
    file.close()


def _write_and_compare(path: Path, sizes: list[int]) -> None:
    generator = random.Random(0)
    parts = [generator.randbytes(size) for size in sizes]
    with DirectFile(path) as file:
        done = 0
        for part in parts:
            assert file.write(part) == len(part)
            done += len(part)
            file.flush()
            assert file.tell() == done
    assert path.read_bytes() == b"".join(parts)
