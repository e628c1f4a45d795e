"""Errors that come of a full disk, as libraries raise them."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from megatron_resrl.errors import RunError
from megatron_resrl.platform.disk import DiskFull, report_full_disk

NEEDED = 10**9


class Common(RunError):
    common = True


def said(error: BaseException, free: int, monkeypatch: pytest.MonkeyPatch) -> DiskFull | None:
    """What becomes of the error where so many bytes are free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    try:
        with report_full_disk(Path("/tmp/no/such/run"), NEEDED):
            raise error
    except DiskFull as full:
        return full
    except type(error):
        return None


# Seen on a full disk.
TORCH = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
SAFETENSORS = SafetensorError(
    "Error while serializing: I/O error: No space left on device (os error 28)"
)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        TORCH,
        SAFETENSORS,
        Common("checkpoint x could not be written: rank 3: OSError(28, 'No space left on device')"),
    ],
    ids=["system", "quota", "torch", "safetensors", "another rank"],
)
def test_full_disk_names_place_and_sizes(error, monkeypatch):
    full = said(error, 5_000_000, monkeypatch)
    assert str(full).startswith("no space left on /tmp: 5 MB free, needs 1 GB (")
    assert str(error) in str(full)
    assert full.common == isinstance(error, Common)


def test_full_disk_is_found_in_the_cause_of_an_error(monkeypatch):
    error = KeyError("x")
    error.__cause__ = TORCH
    assert said(error, 0, monkeypatch)


def test_full_disk_is_not_blamed_where_there_is_room(monkeypatch):
    assert "is used up" in str(said(SAFETENSORS, 10**12, monkeypatch))
    assert said(TORCH, 10**12, monkeypatch) is None
    assert said(OSError(errno.EACCES, "Permission denied"), 0, monkeypatch) is None
