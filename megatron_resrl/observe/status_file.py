"""Tells readers of the output directory what a run is doing, and how it began and ended.

<output_dir>/status.json      what it is doing now, replaced every ten seconds
<output_dir>/history.jsonl    one line for each start and end
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_resrl.observe.activity import describe
from megatron_resrl.platform import phases
from megatron_resrl.platform.run_files import HISTORY, STATUS, write_whole

INTERVAL_S = 10.0
"""Seconds between two signs of life."""


class StatusFile(contextlib.AbstractContextManager):
    """Writes both files while the block runs, on rank 0 alone, in a thread that no step waits for.

    A file system that is away for a while costs signs of life, not the run.
    """

    def __init__(
        self,
        output_dir: Path,
        process: dict[str, Any],
        ended: Callable[[BaseException | None], tuple[str, str | None]],
        interval_s: float = INTERVAL_S,
    ) -> None:
        """
        Args:
            output_dir: Of the run.
            process: What is known of the run and its process: `stage`, `host`, `pid`, `job`, ...
            ended: The error that ends the block, if one does -> `finished`, `interrupted` or
                `failed`, and what to say of it.
            interval_s: Seconds between two signs of life.
        """
        self._output_dir = output_dir
        self._process = process
        self._ended = ended
        self._interval_s = interval_s
        self._progress: dict[str, Any] = {"steps": None, "steps_done": None}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status file", daemon=True)

    def begin(self, steps: int, steps_done: int) -> None:
        """The first step follows; called again when the run has gone back to a checkpoint.

        Args:
            steps: Of the whole run.
            steps_done: Before this step.
        """
        first = self._progress["steps"] is None
        self._progress = {"steps": steps, "steps_done": steps_done}
        self._note({"event": "start" if first else "rollback", "steps_done": steps_done})

    def finish_step(self, step: int) -> None:
        """A step is done."""
        self._progress = self._progress | {"steps_done": step}

    def __enter__(self) -> StatusFile:
        self._write("running", None)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        self._thread.join()
        state, words = self._ended(error)
        self._write(state, words)
        end = {"event": "end", "state": state, "error": words}
        self._note(end | {"steps_done": self._progress["steps_done"]})

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._write("running", None)

    def _write(self, state: str, error: str | None) -> None:
        doing = phases.current()
        now = time.time()
        content = self._process | self._progress
        content |= {"state": state, "error": error, "time": round(now, 3)}
        content |= {"step": phases.current_step(), "phase": describe(doing)}
        content["phase_since"] = round(now - (time.monotonic() - doing.since), 3)
        with contextlib.suppress(OSError):
            write_whole(self._output_dir / STATUS, content)

    def _note(self, event: dict[str, Any]) -> None:
        own = ("host", "pid", "job", "restarts")
        line = event | {name: self._process.get(name) for name in own} | {"time": time.time()}
        with contextlib.suppress(OSError), (self._output_dir / HISTORY).open("a") as file:
            file.write(json.dumps(line) + "\n")
