"""The progress of a run on the terminal, or as plain lines in a log file."""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

from tqdm import tqdm


def _has_columns(stream: TextIO) -> bool:
    """Whether a bar can be drawn; a terminal may have no size, e.g. in a container."""
    return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0


class Progress:
    """Steps done, reward and time left.

    On a terminal a bar that is drawn in place; anywhere else (a log file, a pipe) one plain line
    per step, without control characters.

    Args:
        total: Steps of the whole run.
        start: Steps already done when this process began (after a resume).
        enabled: False: nothing is written; for all ranks but one, or if the user wants silence.
        stream: Where to write; default: standard error.
    """

    def __init__(
        self, total: int, *, start: int = 0, enabled: bool = True, stream: TextIO | None = None
    ) -> None:
        self._total = total
        self._start = start
        self._began = time.monotonic()
        self._stream = stream or sys.stderr
        self._lines = enabled and not _has_columns(self._stream)
        self._bar = None
        if enabled and not self._lines:
            self._bar = tqdm(
                total=total,
                initial=start,
                file=self._stream,
                unit="step",
                dynamic_ncols=True,
                mininterval=0,
                miniters=1,
            )

    def begin(self) -> None:
        """Starts the clock: what came before the first step does not count for the time left."""
        self._began = time.monotonic()
        if self._bar is not None:
            self._bar.reset()
            self._bar.n = self._bar.last_print_n = self._start

    def update(self, step: int, reward: float) -> None:
        """Reports that `step` (from 1) is done.

        Args:
            step: Steps of the whole run done so far.
            reward: Mean reward of the step's responses.
        """
        if self._bar is not None:
            self._bar.set_postfix_str(f"reward {reward:.3f}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._lines:
            seconds = (time.monotonic() - self._began) / max(step - self._start, 1)
            left = tqdm.format_interval((self._total - step) * seconds)
            print(
                f"step {step}/{self._total}  reward {reward:.3f}  {seconds:.1f} s/step  "
                f"{left} left",
                file=self._stream,
                flush=True,
            )

    def message(self, text: str) -> None:
        """Writes a line without tearing the bar apart."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._lines:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the finished bar on the terminal."""
        if self._bar is not None:
            self._bar.close()
