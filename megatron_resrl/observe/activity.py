"""What a run is doing right now, in words; logged when nothing else is written for long."""

from __future__ import annotations

import contextlib
import logging
import threading
import time

from megatron_resrl.platform import phases

logger = logging.getLogger(__name__)

SILENCE_S = 30.0
"""Seconds after which a log gets a line."""

_WORDS = {
    "start": "starting",
    "start of the process group": "waiting for the other ranks",
    "start of the model": "loading the model",
    "start of the rollout engine": "starting the rollout engine",
    "data": "reading questions",
    "run": "working",
    "reward": "grading",
    "sync": "sending weights",
    "checkpoint": "saving",
    "checkpoint write": "saving",
    "export": "exporting the Hugging Face model",
    "interruption": "asking all ranks whether to go on",
}
"""Names of phases that do not speak for themselves."""


def describe(doing: phases.Doing) -> str:
    """A phase and how far it is: `rollout 11/16, token 40 of 96`."""
    text = _WORDS.get(doing.phase, doing.phase)
    if doing.total:
        text += f" {doing.done}/{doing.total}"
    return f"{text}, {doing.detail}" if doing.detail else text


class LastOutput(logging.Handler):
    """When something was last written, by a logger or by whoever calls `touch`; writes nothing."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.at = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes note of a record."""
        self.touch()

    def touch(self) -> None:
        """Takes note of text that was not written by a logger."""
        self.at = time.monotonic()


last_output = LastOutput()
"""Of this process; the progress display takes part."""


class Activity(contextlib.AbstractContextManager):
    """While the block runs, a thread logs what this rank does when nothing is written for long."""

    def __init__(self, silence_s: float = SILENCE_S) -> None:
        """
        Args:
            silence_s: Seconds without a word after which a line is logged.
        """
        self._silence_s = silence_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="activity", daemon=True)

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._silence_s / 4)):
            if time.monotonic() - last_output.at >= self._silence_s:
                doing, step = phases.current(), phases.current_step()
                where = "" if step is None else f"step {step}: "
                seconds = time.monotonic() - doing.since
                logger.info("%s%s, for %.0f s", where, describe(doing), seconds)

    def __enter__(self) -> Activity:
        last_output.touch()
        logging.getLogger().addHandler(last_output)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        logging.getLogger().removeHandler(last_output)
