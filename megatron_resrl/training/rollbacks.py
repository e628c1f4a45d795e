"""Rollbacks of a run: to which checkpoint it went back, and with which data it went on.

    <output_dir>/rollbacks.jsonl    one line for each, the newest last

A run that is killed after a rollback reads the file and goes on as it would have.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_resrl.checkpoint.folders import CheckpointError, check_whole, make_latest
from megatron_resrl.errors import RunError
from megatron_resrl.platform.run_files import (
    CHECKPOINTS,
    ROLLBACKS,
    finished_checkpoints,
    replace_file,
    step_of,
)
from megatron_resrl.training.stage import StageState

logger = logging.getLogger(__name__)


class CannotRollBack(RunError):
    """A rule asks for a rollback that is not possible."""

    common = True


class RollBack(Exception):
    """Ends the steps of a run, which begins again from an older checkpoint; not an error."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(str(checkpoint))
        self.checkpoint = checkpoint


@dataclass(frozen=True)
class Rollback:
    """One line of the file."""

    step: int
    """Last step before the rollback; it and those since `to` were dropped."""
    to: int
    """Step of the checkpoint."""
    reason: str
    sampler: dict[str, Any]
    """Position in the data after `step`, where the run goes on."""
    extra: dict[str, Any]
    """See `StageState.extra`, after `step`."""
    metrics: dict[str, float | None]
    """Of `step`; null: not finite."""
    time: float
    """Seconds since 1970."""


def read_rollbacks(output_dir: Path) -> list[Rollback]:
    """All rollbacks of a run in their order."""
    try:
        text = (Path(output_dir) / ROLLBACKS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [Rollback(**json.loads(line)) for line in text.splitlines()]


def position_after(step: int, rollbacks: Sequence[Rollback]) -> StageState | None:
    """Where in its data a run goes on after the checkpoint of `step`, because it went back there.

    Returns:
        None: where the checkpoint says. A rollback to an older checkpoint drops those to newer
        ones before it, whose data it skips, too.
    """
    found = None
    for each in rollbacks:
        if each.to < step:
            found = None
        elif each.to == step:
            found = StageState(each.sampler, each.extra)
    return found


def choose_checkpoint(
    steps: Sequence[int], step: int, rollbacks: Sequence[Rollback], window: int
) -> int | None:
    """The checkpoint to go back to from a bad step.

    The newest before the step. If the step comes less than `window` steps after that of the last
    rollback, which did not help then, the newest before that rollback's checkpoint, if there is
    one.

    Args:
        steps: Of the checkpoints that are whole.
        step: The bad one.
        rollbacks: Those so far.
        window: `health.window`.
    """
    before = [each for each in steps if each < step]
    last = rollbacks[-1] if rollbacks else None
    if last is not None and step < last.step + window:
        older = [each for each in before if each < last.to]
        before = older or before
    return max(before, default=None)


def note_rollback(output_dir: Path, rollback: Rollback) -> None:
    """Adds a line to the file, which is whole at every moment and outlives a loss of power."""
    records = [*read_rollbacks(output_dir), rollback]
    lines = (json.dumps(asdict(each), allow_nan=False) + "\n" for each in records)
    replace_file(output_dir / ROLLBACKS, "".join(lines), durable=True)


def roll_back(
    output_dir: Path,
    step: int,
    reason: str,
    state: StageState,
    metrics: dict[str, float | None],
    *,
    window: int,
    most: int,
) -> Path:
    """Chooses the checkpoint, writes the rollback down, and drops newer checkpoints.

    For one process, rank 0.

    Args:
        output_dir: Of the run.
        step: The bad one, which is done.
        reason: What is wrong with it.
        state: Of the stage after it.
        metrics: Of the step; None for what is not finite.
        window: `health.window`.
        most: `health.max_rollbacks`.

    Returns:
        The folder of the checkpoint.

    Raises:
        CannotRollBack: The run has gone back too often, or there is no older checkpoint.
    """
    past = read_rollbacks(output_dir)
    if len(past) >= most:
        raise CannotRollBack(
            f"step {step}: {reason}; the run has gone back {len(past)} times (health.max_rollbacks)"
            " and ends, the step is not saved. Lower optimizer.lr, look at the data, or set the "
            "rule to warn; the same command continues from the newest checkpoint"
        )
    folders = {step_of(path): path for path in finished_checkpoints(output_dir / CHECKPOINTS)}
    whole = [number for number, path in folders.items() if _is_whole(path)]
    target = choose_checkpoint(whole, step, past, window)
    if target is None:
        raise CannotRollBack(
            f"step {step}: {reason}; there is no checkpoint before this step to go back to, and "
            "the run ends. Let checkpoint.save_every be smaller, or set the rule to warn"
        )
    note_rollback(
        output_dir,
        Rollback(step, target, reason, state.sampler, state.extra, metrics, round(time.time(), 3)),
    )
    make_latest(folders[target])
    return folders[target]


def _is_whole(path: Path) -> bool:
    try:
        check_whole(path)
    except CheckpointError as problem:
        logger.warning("%s", problem)
        return False
    return True
