"""The progress display, on a real pseudo-terminal and in a file."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios

from megatron_resrl.observe.progress import ByteProgress, Progress


def test_progress_writes_one_plain_line_per_step_to_a_file() -> None:
    stream = io.StringIO()
    progress = Progress(4, start=1, stream=stream)
    progress.update(2, "reward 0.250")
    progress.message("evaluated")
    progress.update(3, "reward 0.500")
    progress.close()
    lines = stream.getvalue().splitlines()
    assert re.fullmatch(r"step 2/4  reward 0\.250  \d+\.\d s/step  \d\d:\d\d left", lines[0])
    assert lines[1] == "evaluated"
    assert lines[2].startswith("step 3/4  reward 0.500")
    assert len(lines) == 3
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_progress_writes_nothing_when_disabled() -> None:
    stream = io.StringIO()
    progress = Progress(4, enabled=False, stream=stream)
    progress.update(1, "reward 0.500")
    progress.message("unheard")
    progress.close()
    assert stream.getvalue() == ""


def all_of(reader: int) -> str:
    """What was written to a terminal whose other end is closed."""
    parts = []
    with contextlib.suppress(OSError):  # The end of a pseudo-terminal.
        while part := os.read(reader, 65536):
            parts.append(part)
    os.close(reader)
    return b"".join(parts).decode()


def test_progress_shows_a_bar_with_steps_and_reward() -> None:
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with os.fdopen(writer, "w") as terminal:
        progress = Progress(4, start=1, stream=terminal)
        progress.update(2, "reward 0.250")
        progress.message("a line above the bar")
        progress.update(4, "reward 0.750")
        progress.close()
    drawn = all_of(reader)
    assert "\r" in drawn
    assert "4/4" in drawn
    assert "reward 0.750" in drawn
    assert "a line above the bar" in drawn


def test_progress_writes_plain_lines_without_a_terminal_size() -> None:
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        progress = Progress(4, stream=terminal)
        progress.update(1, "reward 0.250")
    drawn = all_of(reader)
    assert drawn.startswith("step 1/4  reward 0.250")


def test_progress_leaves_startup_time_out_of_the_time_left(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("megatron_resrl.observe.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(3, stream=stream)
    now[0] += 500  # an evaluation
    progress.begin()
    now[0] += 10
    progress.update(1, "reward 0.500")
    assert "10.0 s/step  00:20 left" in stream.getvalue()


def test_byte_progress_writes_lines_now_and_then_to_a_file() -> None:
    stream = io.StringIO()
    rare = ByteProgress(1000, stream=stream)
    rare.update(10, "1 document")
    assert stream.getvalue() == ""
    progress = ByteProgress(1000, start=200, every_s=0, stream=stream)
    progress.update(400, "7 documents")
    progress.message("one left out")
    progress.close()
    lines = stream.getvalue().splitlines()
    assert re.fullmatch(r"40\.0%  7 documents  \d\d:\d\d left", lines[0])
    assert lines[1:] == ["one left out"]
