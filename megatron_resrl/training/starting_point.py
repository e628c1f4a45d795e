"""Where a run starts: anew, or from a checkpoint of the same run."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from megatron_resrl.checkpoint import checkpoint_to_resume
from megatron_resrl.checkpoint.folders import read_trainer_file
from megatron_resrl.config.schema import RunSettings
from megatron_resrl.errors import InputError, RunError
from megatron_resrl.observe.metrics import aside_name, free_number, set_aside
from megatron_resrl.platform.distributed import run_on_rank_zero
from megatron_resrl.platform.run_files import (
    FINISHED,
    HISTORY,
    ROLLBACKS,
    step_of,
)
from megatron_resrl.training.identity import Identity, changes

logger = logging.getLogger(__name__)

_MADE_BY_A_RUN = (
    *("checkpoints", "tensorboard", "rollouts", "hf", "not_finite", "wandb_run_id.txt"),
    *("metrics.jsonl", "samples.jsonl", "recipe.yaml", ROLLBACKS, HISTORY, FINISHED),
)
_RESTARTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
"""What Slurm and torchrun count when they start a job or its ranks again."""


class NothingLeftToDo(RunError):
    """All steps of the run are done."""

    status = 0
    common = True


@dataclass(frozen=True)
class StartingPoint:
    """Where a run starts; the same on all ranks."""

    checkpoint: Path | None
    """Whose state the run continues; None: it starts from step 1."""
    new_data: bool = False
    """The data are shuffled anew although the run continues."""


def find_starting_point(settings: RunSettings, identity: Identity) -> StartingPoint:
    """Looks for the checkpoint that a run continues. Collective.

    Args:
        settings: Of the run; the section `checkpoint` says whether it may resume.
        identity: What the run trains, the same on all ranks.

    Raises:
        InputError: On all ranks: the checkpoint is of another run.
        NothingLeftToDo: On all ranks: the last step is saved and exported.
        CheckpointError: There are checkpoints, and all of them are damaged.
    """
    output_dir = Path(settings.output_dir)
    if settings.checkpoint.resume == "never" and not _restarted_by_launcher():
        run_on_rank_zero(lambda: _start_over(output_dir))
        return StartingPoint(None)
    checkpoint = checkpoint_to_resume(
        output_dir, verify_checksums=settings.checkpoint.verify_checksums
    )
    new_data = False
    if checkpoint is None:
        run_on_rank_zero(lambda: set_aside(output_dir / ROLLBACKS))
    else:
        new_data = run_on_rank_zero(lambda: _compare(checkpoint, identity, settings))
    run_on_rank_zero(lambda: _require_work(checkpoint, settings))
    return StartingPoint(checkpoint, new_data)


def note_finished(output_dir: Path, step: int) -> None:
    """Writes down, on rank 0, that nothing is left to do after `step`."""
    if dist.get_rank() == 0:
        note = {"step": step, "time": round(time.time(), 3)}
        (output_dir / FINISHED).write_text(json.dumps(note) + "\n")


def _restarted_by_launcher() -> bool:
    """Whether a launcher restarted this job: what is in the folder is its own."""
    counts = [os.environ.get(name, "0") for name in _RESTARTS]
    again = any(count.isdecimal() and int(count) > 0 for count in counts)
    if again and dist.get_rank() == 0:
        logger.warning(
            "checkpoint.resume is never, but the launcher has restarted this job: the job "
            "continues its own run"
        )
    return again


def _start_over(output_dir: Path) -> None:
    """Moves what an earlier run made out of the way of the new run and of its restarts."""
    made = [output_dir / name for name in _MADE_BY_A_RUN if (output_dir / name).exists()]
    if not made:
        return
    number = free_number([output_dir / name for name in _MADE_BY_A_RUN])
    for path in made:
        set_aside(path, number)
    logger.warning(
        "checkpoint.resume is never: what an earlier run left in %s is set aside (%s ...). Set "
        "checkpoint.resume to auto before this job is submitted again, or it starts over, too",
        output_dir,
        aside_name(made[0], number).name,
    )


def _compare(checkpoint: Path, identity: Identity, settings: RunSettings) -> bool:
    """Says how this run differs from that of the checkpoint.

    Returns:
        Whether its data or their order do.
    """
    trainer = read_trainer_file(checkpoint)
    contents = trainer.get("extra", {}).get("contents")
    found = changes(trainer.get("recipe", ""), contents, identity, type(settings)())
    if contents is None:
        logger.warning(
            "%s was written by a version that did not note model, data and reward in a checkpoint: "
            "they are not compared",
            checkpoint,
        )
    for line in found.harmless:
        logger.info("changed since %s: %s", checkpoint.name, line)
    if not found.meaning:
        return False
    if settings.checkpoint.resume != "changed":
        raise InputError(
            f"{checkpoint} is of another run than this recipe:\n"
            + "\n".join(f"  - {line}" for line in found.meaning)
            + "\nchoose another output_dir to start a new run, restore what the checkpoint was "
            "trained with to continue that run, or set checkpoint.resume to changed to continue "
            "with its weights and optimizer under the new settings"
        )
    for line in found.meaning:
        logger.warning("changed since %s, as checkpoint.resume allows: %s", checkpoint.name, line)
    if found.data:
        logger.warning("the training data are shuffled anew")
    return found.data


def _require_work(checkpoint: Path | None, settings: RunSettings) -> None:
    output_dir = Path(settings.output_dir)
    note = output_dir / FINISHED
    step = 0 if checkpoint is None else step_of(checkpoint)
    exported = (output_dir / "hf").is_dir() or not settings.checkpoint.export_hf
    if step >= settings.steps and exported and _finished_step(note) == step:
        raise NothingLeftToDo(
            f"all {settings.steps} steps are done (the last checkpoint is {checkpoint}); raise "
            "steps or choose another output_dir"
        )
    note.unlink(missing_ok=True)


def _finished_step(note: Path) -> int | None:
    try:
        return json.loads(note.read_text())["step"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
