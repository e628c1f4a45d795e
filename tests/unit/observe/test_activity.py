"""A run says what it is doing: on the bar at any time, in a log after a while of silence."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import pty
import struct
import termios
import threading
import time

import pytest

from megatron_resrl.observe import progress as progress_display
from megatron_resrl.observe.activity import Activity, describe
from megatron_resrl.observe.progress import Progress
from megatron_resrl.platform import phases
from megatron_resrl.platform.phases import begin_step, named_phase, progress


@pytest.fixture(autouse=True)
def before_the_first_step():
    phases._status.step = None
    yield
    phases._status.step = None


def test_activity_describes_a_phase_by_its_parts() -> None:
    with named_phase("rollout"):
        progress(11, 16)
        assert describe(phases.current()) == "rollout 11/16"
        with named_phase("checkpoint write"):
            assert describe(phases.current()) == "saving"
        phases.detail("token 3 of at most 9")
        assert describe(phases.current()) == "rollout 11/16, token 3 of at most 9"
    with named_phase("rollout"):
        assert describe(phases.current()) == "rollout"


def test_activity_names_a_silent_phase_in_the_log_repeatedly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    said = threading.Event()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if len(caplog.messages) >= 4:
                said.set()

    logging.getLogger().addHandler(heard := Heard())
    try:
        with Activity(silence_s=0.05):
            with named_phase("start of the model"):
                while not caplog.messages:
                    time.sleep(0.01)
            begin_step(3)
            with named_phase("rollout"):
                progress(11, 16)
                assert said.wait(60)
    finally:
        logging.getLogger().removeHandler(heard)
    assert caplog.messages[0].startswith("loading the model, for ")
    assert caplog.messages[-1].startswith("step 3: rollout 11/16, for ")


def test_activity_is_silent_while_others_write(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Activity(silence_s=1000.0):
        logging.getLogger("other").info("hello")
    assert caplog.messages == ["hello"]


def test_progress_bar_follows_the_phase_and_its_clock_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_display, "REFRESH_S", 0.05)
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    drawn = ""
    with os.fdopen(writer, "w") as terminal, named_phase("update"):
        bar = Progress(4, stream=terminal)
        progress(3, 8)
        while "update 3/8" not in drawn or "00:01" not in drawn:
            drawn += os.read(reader, 65536).decode()
        bar.update(1, "reward 0.500")
        while "reward 0.500, update 3/8" not in drawn:
            drawn += os.read(reader, 65536).decode()
        bar.close()
    os.close(reader)


def test_activity_writes_lines_to_a_terminal_without_a_bar() -> None:
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with os.fdopen(writer, "w") as terminal:
        display = Progress(4, bar=False, stream=terminal)
        display.update(1, "reward 0.250")
        display.close()
        drawn = os.read(reader, 65536).decode()
    os.close(reader)
    assert drawn.startswith("step 1/4  reward 0.250")
    silent = io.StringIO()
    Progress(4, enabled=False, bar=False, stream=silent).update(1, "reward 0.250")
    assert silent.getvalue() == ""
