"""A disk that is full, in plain words, whichever library noticed it."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_resrl.errors import RunError

_ERRORS = (errno.ENOSPC, errno.EDQUOT)
_SAID = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122")
"""By libraries that turn an error of the system into text."""
_SHORT_WRITE = ("unexpected pos ", "failed writing file")
"""What torch says of a file that grew less than it was told to, for whatever reason."""

_OTHERS = 2**26
"""Bytes that other files of a run may take."""


class DiskFull(RunError):
    """A file could not be written because its disk is full."""

    def __init__(self, message: str, common: bool) -> None:
        super().__init__(message)
        self.common = common


@contextlib.contextmanager
def full_disk_named(place: Path, needed: int) -> Iterator[None]:
    """Turns whatever a full disk makes of the block into one sentence.

    Args:
        place: Where the block writes.
        needed: Bytes of the largest thing that it writes.

    Raises:
        DiskFull: Instead of errors that come of a full disk.
    """
    try:
        yield
    except Exception as error:
        said = out_of_space(error, place, needed)
        if said is None:
            raise
        raise DiskFull(said, getattr(error, "common", False)) from error


def out_of_space(error: BaseException, place: Path, needed: int) -> str | None:
    """What to say of an error if a full disk is its cause; see `full_disk_named`."""
    chain = list(_chain(error))
    full = any(
        getattr(each, "errno", None) in _ERRORS or any(words in str(each) for words in _SAID)
        for each in chain
    )
    short = any(words in str(each) for each in chain for words in _SHORT_WRITE)
    if not full and not short:
        return None
    place = existing_parent(place)
    free = shutil.disk_usage(place).free
    if free < needed:
        return (
            f"no space left on {place}: {in_words(free)} free, needs {in_words(needed)} ({error})"
        )
    if free < 2 * needed + _OTHERS:
        # What was begun and could not be finished is deleted by now.
        return f"no space left on {place}: {in_words(free)} free, needs more ({error})"
    if not full:
        return None
    return (
        f"no space left on a disk that the run writes to, or its quota is used up ({error}); "
        f"{in_words(free)} are free on {place}"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def existing_parent(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def in_words(size: float) -> str:
    """A number of bytes for people."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"
