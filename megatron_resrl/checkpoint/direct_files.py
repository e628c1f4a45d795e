"""Files written past the operating system's page cache.

A checkpoint is not read again soon. Through the page cache, every byte of it is copied by the
kernel, with CPU time and memory bandwidth that a training step needs meanwhile; written directly,
the disk fetches it from where it is.
"""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
from pathlib import Path

_BUFFER_BYTES = 1 << 23
"""Written at once: large enough for full speed, small enough to stay in a CPU's cache meanwhile."""
_ALIGNMENT = 4096
"""Of addresses, sizes and positions of direct writes: no file system asks for more."""
_DIRECT: int = getattr(os, "O_DIRECT", 0)
"""Linux has it; elsewhere files are written as usual."""


class DirectFile(io.RawIOBase):
    """A new file that is written front to back, directly where its file system can.

    Direct writes are of whole blocks: `flush` does nothing, and the last part waits for `fileno` or
    `close`. As for other files, only `os.fsync` puts it on stable storage.
    """

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: An older file is replaced.

        Raises:
            OSError: It cannot be written.
        """
        super().__init__()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            self._descriptor = os.open(path, flags | _DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._descriptor = os.open(path, flags, 0o666)
        self._buffer = mmap.mmap(-1, _BUFFER_BYTES)  # Begins at a page.
        self._filled = 0
        self._written = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The system's descriptor, once all bytes so far are handed over."""
        # What the caller does with it, such as `os.fsync`, concerns all that it has written.
        self._write_rest()
        return self._descriptor

    def tell(self) -> int:
        """Bytes so far."""
        return self._written + self._filled

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        """Takes all bytes of a buffer."""
        view = memoryview(data).cast("B")
        begin = 0
        while begin < len(view):
            taken = min(len(view) - begin, _BUFFER_BYTES - self._filled)
            self._buffer[self._filled : self._filled + taken] = view[begin : begin + taken]
            self._filled += taken
            begin += taken
            if self._filled == _BUFFER_BYTES:
                self._write_buffer()
        return len(view)

    def close(self) -> None:
        """Hands over what is left; the file is closed even if that fails."""
        if self.closed:
            return
        try:
            self._write_rest()
        finally:
            super().close()
            os.close(self._descriptor)

    def _write_rest(self) -> None:
        """Hands over what fills no buffer; whatever follows is written as usual."""
        if self._filled % _ALIGNMENT:
            self._write_usually()
        self._write_buffer()

    def _write_buffer(self) -> None:
        with memoryview(self._buffer) as content:
            begin = 0
            while begin < self._filled:
                try:
                    done = os.write(self._descriptor, content[begin : self._filled])
                except OSError as error:
                    if error.errno != errno.EINVAL or not self._is_direct():
                        raise
                    # Some file systems take the flag and refuse the writes.
                    self._write_usually()
                    continue
                begin += done
                if begin % _ALIGNMENT:
                    self._write_usually()
        self._written += self._filled
        self._filled = 0

    def _is_direct(self) -> bool:
        return bool(fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & _DIRECT)

    def _write_usually(self) -> None:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~_DIRECT)
