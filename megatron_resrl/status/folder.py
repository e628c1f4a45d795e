"""Reads from an output directory how its run is getting on, whether it lives or not."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_resrl.errors import InputError
from megatron_resrl.platform.run_files import (
    BEST,
    CHECKPOINTS,
    FINISHED,
    HISTORY,
    INTERRUPTED,
    LATEST,
    LOCK,
    METRICS,
    ROLLBACKS,
    STATUS,
    finished_checkpoints,
    read_lines,
    read_marker,
    read_object,
    read_sizes,
    step_of,
)
from megatron_resrl.platform.run_holder import Holder, read_holder

State = Literal["running", "silent", "killed", "interrupted", "failed", "finished", "unknown"]
"""`silent`: on another host, without a sign of life for more than a minute. `killed`: its process
is gone without a word."""

SILENCE_S = 60.0
"""Without a sign of life for so long a run on another host is `silent`; it gives one every 5 s."""
_STEPS = 20
"""Of so many last steps the median time is the speed."""
_TAIL_BYTES = 2**18
"""Of metrics.jsonl; a step's line has some kilobytes."""


@dataclass(frozen=True)
class CheckpointOnDisk:
    """One checkpoint of the run."""

    step: int
    num_bytes: int
    whole: bool
    """All its files are there and as long as noted when it was written; contents are not read."""
    marks: tuple[str, ...]
    """`latest` and `best`."""


@dataclass(frozen=True)
class RunStatus:
    """Everything that the directory tells."""

    folder: str
    state: State
    stage: str | None
    step: int | None
    """Last step done."""
    steps: int | None
    """Of the whole run."""
    phase: str | None
    """What a running run does, as it said last."""
    metrics: dict[str, float | None]
    """Of the last step."""
    seconds_per_step: float | None
    seconds_left: float | None
    sign_of_life_age_s: float | None
    """Seconds since the run's last sign of life."""
    process: dict[str, Any]
    """Host, process, Slurm job and command of the run that is there, or was last."""
    error: str | None
    """What an ended run said last."""
    starts: int
    """Of processes of the run, restarts included."""
    interruptions: int
    failures: int
    """Errors, and ends without a word."""
    rollbacks: list[dict[str, Any]]
    checkpoints: list[CheckpointOnDisk]
    """Oldest first."""


def read_status(folder: Path, now: float | None = None) -> RunStatus:
    """How a run is getting on.

    Args:
        folder: The run's `output_dir`.
        now: Seconds since 1970; None: the clock's.

    Raises:
        InputError: No run has written there.
    """
    now = time.time() if now is None else now
    names = (LOCK, STATUS, METRICS, HISTORY, CHECKPOINTS)
    if not any((folder / name).exists() for name in names):
        raise InputError(
            f"RUN = {str(folder)!r}: no run has written here, there is none of {', '.join(names)}; "
            "give the output_dir of a run"
        )
    said = read_object(folder / STATUS) or {}
    holder = read_holder(folder / LOCK)
    age = _age(folder, said, now)
    lines = read_lines(folder / METRICS, _TAIL_BYTES)
    last = lines[-1] if lines else {}
    step, steps = last.get("step"), said.get("steps")
    pace = seconds_per_step(lines)
    state = _state(folder, said, holder, age)
    events = read_lines(folder / HISTORY)
    left = None
    if state == "running" and pace is not None and step is not None and steps is not None:
        left = pace * max(0, steps - step)
    rollbacks = read_lines(folder / ROLLBACKS)
    return RunStatus(
        folder=str(folder),
        state=state,
        stage=said.get("stage"),
        step=step,
        steps=steps,
        phase=said.get("phase") if state in ("running", "silent") else None,
        metrics={name: last[name] for name in last if name not in ("step", "time")},
        seconds_per_step=pace,
        seconds_left=left,
        sign_of_life_age_s=age,
        process=_process(said, holder),
        error=None if state == "running" else said.get("error"),
        starts=sum(event.get("event") == "start" for event in events),
        interruptions=sum(event.get("state") == "interrupted" for event in events),
        failures=_failures(events, running=state in ("running", "silent")),
        rollbacks=[
            {name: each.get(name) for name in ("step", "to", "reason")} for each in rollbacks
        ],
        checkpoints=read_checkpoints(folder / CHECKPOINTS),
    )


def seconds_per_step(lines: Sequence[dict[str, Any]]) -> float | None:
    """Median time between the last steps, so that a restart among them hardly counts."""
    times = [line["time"] for line in lines if line.get("step") and line.get("time")]
    times = times[-_STEPS - 1 :]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return statistics.median(gaps) if gaps else None


def read_checkpoints(root: Path) -> list[CheckpointOnDisk]:
    """The checkpoints of a run; one that is deleted meanwhile is left out."""
    markers = {mark: read_marker(root, mark) for mark in (LATEST, BEST)}
    found = []
    for path in sorted(finished_checkpoints(root), key=step_of):
        marks = tuple(mark for mark, target in markers.items() if target == path)
        with contextlib.suppress(FileNotFoundError):
            found.append(CheckpointOnDisk(step_of(path), *_size(path), marks))
    return found


def _size(checkpoint: Path) -> tuple[int, bool]:
    """Bytes of a checkpoint, and whether it is whole."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    found = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    try:
        noted = read_sizes(checkpoint) or {}
    except ValueError:
        return sum(found.values()), False
    whole = bool(found) and all(found.get(name, -1) >= size for name, size in noted.items())
    return sum(found.values()), whole


def _age(folder: Path, said: dict[str, Any], now: float) -> float | None:
    """The lock's file is touched every few seconds, the status is written less often."""
    signs = [said["time"]] if "time" in said else []
    with contextlib.suppress(FileNotFoundError):
        signs.append((folder / LOCK).stat().st_mtime)
    return max(0.0, now - max(signs)) if signs else None


def _state(folder: Path, said: dict[str, Any], holder: Holder | None, age: float | None) -> State:
    if holder is not None:
        gone = holder.is_gone()
        if gone is not None:
            return "killed" if gone else "running"
        return "running" if age is not None and age < SILENCE_S else "silent"
    if (folder / FINISHED).exists():
        return "finished"
    if (folder / INTERRUPTED).exists():
        return "interrupted"
    ends: dict[str, State] = {
        "failed": "failed",
        "interrupted": "interrupted",
        "finished": "finished",
    }
    return ends.get(said.get("state", ""), "killed" if said else "unknown")


def _process(said: dict[str, Any], holder: Holder | None) -> dict[str, Any]:
    names = ("host", "pid", "job", "restarts", "started", "command")
    source = vars(holder) if holder is not None else said
    return {name: source.get(name) for name in names}


def _failures(events: Sequence[dict[str, Any]], *, running: bool) -> int:
    """Ends with an error, and starts that no end follows."""
    failed = sum(event.get("state") == "failed" for event in events)
    open_start = False
    for event in events:
        if event.get("event") == "start":
            failed += open_start
            open_start = True
        elif event.get("event") == "end":
            open_start = False
    return failed + (open_start and not running)
