"""Errors of a full disk, recognised whichever library raised them."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_resrl.errors import RunError

_ERRORS = (errno.ENOSPC, errno.EDQUOT)
_FULL_DISK_TEXTS = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122")
"""In messages of libraries that turn an error of the system into text."""
_SHORT_WRITE_TEXTS = ("unexpected pos ", "failed writing file")
"""In torch's messages on a file that is shorter than what was written, for whatever reason."""

_OTHER_FILES_BYTES = 2**26
"""Bytes that other files of a run may take."""


class DiskFull(RunError):
    """A file could not be written because its disk is full."""

    def __init__(self, message: str, common: bool) -> None:
        super().__init__(message)
        self.common = common


@contextlib.contextmanager
def report_full_disk(place: Path, needed: int) -> Iterator[None]:
    """Replaces the error that a full disk causes in the block by one sentence.

    Args:
        place: Where the block writes.
        needed: Bytes of the largest thing that it writes.

    Raises:
        DiskFull: Instead of an error whose cause is a full disk.
    """
    try:
        yield
    except Exception as error:
        message = _full_disk_message(error, place, needed)
        if message is None:
            raise
        raise DiskFull(message, getattr(error, "common", False)) from error


def _full_disk_message(error: BaseException, place: Path, needed: int) -> str | None:
    """What to say of an error whose cause is a full disk; None: it has another cause."""
    chain = list(_chain(error))
    full = any(
        getattr(each, "errno", None) in _ERRORS
        or any(text in str(each) for text in _FULL_DISK_TEXTS)
        for each in chain
    )
    short = any(text in str(each) for each in chain for text in _SHORT_WRITE_TEXTS)
    if not full and not short:
        return None
    place = existing_parent(place)
    free = shutil.disk_usage(place).free
    if free < needed:
        return (
            f"no space left on {place}: {format_bytes(free)} free, needs {format_bytes(needed)} "
            f"({error})"
        )
    if free < 2 * needed + _OTHER_FILES_BYTES:
        # The incomplete file is deleted by now.
        return f"no space left on {place}: {format_bytes(free)} free, needs more ({error})"
    if not full:
        return None
    return (
        f"no space left on a disk that the run writes to, or its quota is used up ({error}); "
        f"{format_bytes(free)} are free on {place}"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its cause, the cause of its cause, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def existing_parent(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def format_bytes(size: float) -> str:
    """A number of bytes for people, e.g. `1.5 GB`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"
