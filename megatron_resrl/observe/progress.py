"""The progress of a run on the terminal, or as plain lines in a log file."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

from megatron_resrl.observe.activity import describe, last_output
from megatron_resrl.platform import phases

REFRESH_S = 1.0
"""Seconds between drawings of the bar."""


def _has_columns(stream: TextIO) -> bool:
    """Whether a bar can be drawn; a terminal may have no size, e.g. in a container."""
    return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0


class Progress:
    """Steps done, what is being done, a headline metric and time left.

    On a terminal a bar that is drawn in place, each second anew; anywhere else (a log file, a pipe)
    one plain line per step, without control characters.

    Args:
        total: Steps of the whole run.
        start: Steps already done when this process began (after a resume).
        enabled: False: nothing is written; for all ranks but one.
        bar: False: lines on a terminal, too.
        stream: Where to write; default: standard error.
        write: Takes lines instead of the stream.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        enabled: bool = True,
        bar: bool = True,
        stream: TextIO | None = None,
        write: Callable[[str], None] | None = None,
    ) -> None:
        self._total = total
        self._start = start
        self._began = time.monotonic()
        self._stream = stream or sys.stderr
        self._write = write or self._print
        self._lines = enabled and not (bar and _has_columns(self._stream))
        self._bar = _Bar(total, start, self._stream) if enabled and not self._lines else None

    def begin(self) -> None:
        """Starts the clock: what came before the first step does not count for the time left."""
        self._began = time.monotonic()
        if self._bar is not None:
            self._bar.begin(self._start)

    def update(self, step: int, headline: str) -> None:
        """Reports that `step` (from 1) is done.

        Args:
            step: Steps of the whole run done so far.
            headline: What to show of the step, e.g. `reward 0.250`; may be empty.
        """
        if self._bar is not None:
            self._bar.update(step, headline)
        elif self._lines:
            seconds = (time.monotonic() - self._began) / max(step - self._start, 1)
            left = tqdm.format_interval((self._total - step) * seconds)
            parts = (
                f"step {step}/{self._total}",
                headline,
                f"{seconds:.1f} s/step",
                f"{left} left",
            )
            self._write("  ".join(filter(None, parts)))

    def message(self, text: str) -> None:
        """Writes a line without tearing the bar apart."""
        if self._bar is not None:
            self._bar.message(text)
        elif self._lines:
            self._write(text)

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)
        last_output.touch()

    def close(self) -> None:
        """Leaves the finished bar on the terminal."""
        if self._bar is not None:
            self._bar.close()


class _Bar:
    """A bar that a thread draws anew, so that its clock runs and its text follows the phases."""

    def __init__(self, total: int, start: int, stream: TextIO) -> None:
        self._stream = stream
        self._headline = ""
        self._ended = threading.Event()
        self._tqdm = tqdm(
            total=total,
            initial=start,
            file=stream,
            unit="step",
            dynamic_ncols=True,
            mininterval=0,
            miniters=1,
        )
        self._thread = threading.Thread(target=self._draw, name="progress bar", daemon=True)
        self._thread.start()

    def begin(self, start: int) -> None:
        self._tqdm.reset()
        self._tqdm.n = self._tqdm.last_print_n = start

    def update(self, step: int, headline: str) -> None:
        self._headline = headline
        self._tqdm.set_postfix_str(headline, refresh=False)
        self._tqdm.update(step - self._tqdm.n)

    def message(self, text: str) -> None:
        self._tqdm.write(text, file=self._stream)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._tqdm.set_postfix_str(self._headline, refresh=False)
        self._tqdm.close()

    def _draw(self) -> None:
        while not self._ended.wait(REFRESH_S):
            parts = [self._headline, describe(phases.current())]
            self._tqdm.set_postfix_str(", ".join(filter(None, parts)), refresh=True)
            last_output.touch()


class ByteProgress:
    """Bytes done of all: a bar on a terminal, and a plain line now and then anywhere else.

    Args:
        total: Bytes of the whole work.
        start: Bytes already done.
        every_s: Seconds between two lines.
        stream: Where to write; default: standard error.
    """

    def __init__(
        self, total: int, *, start: int = 0, every_s: float = 10.0, stream: TextIO | None = None
    ) -> None:
        self._total, self._start, self._every_s = total, start, every_s
        self._stream = stream or sys.stderr
        self._began = self._written = time.monotonic()
        self._tqdm = None
        if _has_columns(self._stream):
            self._tqdm = tqdm(
                total=total,
                initial=start,
                file=self._stream,
                unit="B",
                unit_scale=True,
                dynamic_ncols=True,
            )

    def update(self, done: int, headline: str) -> None:
        """Reports that `done` bytes of all are done; `headline` says more of them."""
        if self._tqdm is not None:
            self._tqdm.set_postfix_str(headline, refresh=False)
            self._tqdm.update(done - self._tqdm.n)
            return
        now = time.monotonic()
        if now - self._written < self._every_s:
            return
        self._written = now
        left = (self._total - done) * (now - self._began) / max(done - self._start, 1)
        share = f"{100 * done / max(self._total, 1):.1f}%"
        parts = (share, headline, f"{tqdm.format_interval(left)} left")
        print("  ".join(parts), file=self._stream, flush=True)

    def message(self, text: str) -> None:
        """Writes a line without tearing the bar apart."""
        if self._tqdm is not None:
            self._tqdm.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the finished bar on the terminal."""
        if self._tqdm is not None:
            self._tqdm.close()
