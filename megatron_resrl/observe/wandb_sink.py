"""Weights & Biases beside a run: no failure of the service ends or delays training."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

START_S = 60.0
"""Seconds in which the service has to answer when a run starts."""

FINISH_S = 60.0
"""Seconds that a run waits at its end for metrics in flight."""

_QUEUED = 100_000
"""Steps that may wait for the service; further steps are left out."""

_SYNC = "`wandb sync` sends it later"


@dataclass(frozen=True)
class WandbRun:
    """What the run is called there; see the settings `logging.wandb_*`."""

    project: str
    name: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: Sequence[str] = ()


class WeightsAndBiases:
    """One run of the service per output directory, continued when training is.

    A thread makes all calls. Training only puts metrics into its queue, so that a service that
    hangs holds nothing up; a failure is one warning. Where the service cannot be reached, or nobody
    is logged in, the run is written to disk for `wandb sync`.
    """

    def __init__(self, run: WandbRun, directory: Path, resume_step: int | None) -> None:
        """
        Args:
            run: What it is called there.
            directory: Of the run; the service's files go to its folder `wandb`.
            resume_step: Last step of the run that is continued; None: a new one.

        Raises:
            ImportError: wandb is not installed.
        """
        if importlib.util.find_spec("wandb") is None:
            raise ImportError(
                f"logging.wandb_project is {run.project!r}, and wandb is not installed; install "
                "the `wandb` extra (pip install megatron-resrl[wandb]) or set it to null"
            )
        identity = directory / "wandb_run_id.txt"
        if resume_step is None or not identity.exists():
            identity.write_text(f"{uuid.uuid4().hex[:12]}\n", encoding="utf-8")
        self._arguments: dict[str, Any] = {
            "project": run.project,
            "name": run.name or directory.resolve().name,
            "entity": run.entity,
            "group": run.group,
            "tags": list(run.tags) or None,
            "dir": str(directory),
            "id": identity.read_text(encoding="utf-8").strip(),
            "resume": "allow",
        }
        self._queue: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(_QUEUED)
        self._started = threading.Event()
        self._began = time.monotonic()
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hands the metrics of a step over; returns at once."""
        if not self._started.is_set() and time.monotonic() - self._began > START_S:
            self._warn(f"no answer within {START_S:.0f} s; the run goes on without it")
        try:
            self._queue.put_nowait((step, dict(metrics)))
        except queue.Full:
            self._warn(f"it takes no metrics; those from step {step} on are left out")

    def close(self) -> None:
        """Gives what is still under way `FINISH_S` to arrive."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return
        limit = FINISH_S if self._started.is_set() else min(FINISH_S, START_S)
        self._thread.join(limit)
        if self._thread.is_alive():
            self._warn(f"it has not finished within {limit:.0f} s; the run ends without it")

    def _work(self) -> None:
        """The thread: begins the run, logs, finishes."""
        run = self._begin()
        self._started.set()
        while (item := self._queue.get()) is not None:
            if run is None:
                continue
            try:
                run.log(item[1], step=item[0])
            except Exception as error:  # Whatever a service raises must not end the thread.
                self._warn(f"step {item[0]} is not logged ({_summary(error)})")
        if run is not None:
            try:
                run.finish()
            except Exception as error:
                self._warn(f"the run is not finished there ({_summary(error)})")

    def _begin(self) -> Any:
        """The service's run; one that is kept on disk; None if there is neither."""
        try:
            wandb = importlib.import_module("wandb")
            if _asks_for_a_key(wandb):
                self._warn(
                    "no login (`wandb login`, or WANDB_API_KEY); the run is kept below "
                    f"{self._arguments['dir']}/wandb, {_SYNC}"
                )
                return wandb.init(**self._arguments, mode="offline")
            limits = wandb.Settings(init_timeout=START_S) if hasattr(wandb, "Settings") else None
            return wandb.init(**self._arguments, settings=limits)
        except Exception as error:
            first = _summary(error)
        try:
            run = wandb.init(**self._arguments, mode="offline")
        except Exception:
            self._warn(f"{first}; the run goes on without it")
            return None
        self._warn(f"{first}; the run is kept below {self._arguments['dir']}/wandb, {_SYNC}")
        return run

    def _warn(self, problem: str) -> None:
        """Once for a run: a service that is gone would repeat itself each step."""
        if not self._warned:
            self._warned = True
            logger.warning("wandb: %s", problem)


def _asks_for_a_key(wandb: Any) -> bool:
    """Whether `wandb.init` would ask a terminal for a key, and wait for it."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    return getattr(getattr(wandb, "api", None), "api_key", "unknown") is None


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
