"""Hands jobs over to Slurm."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_resrl.errors import InputError
from megatron_resrl.launch.script import Job, render


def frozen(job: Job) -> tuple[Job, Path]:
    """Keeps script and recipe of a job where a later submission does not change them.

    Slurm keeps a copy of the script, and no copy of the recipe, until the job starts.

    Returns:
        The job that reads the copy of the recipe, and its script's file.

    Raises:
        InputError: The output directory cannot be written to.
    """
    root = Path(job.output_dir) / "slurm"
    try:
        folder = _new_folder(root, job.stage)
        recipe = folder / "recipe.yaml"
        shutil.copyfile(job.recipe, recipe)
        job = dataclasses.replace(job, recipe=str(recipe), log_folder=str(root))
        script = folder / "job.sbatch"
        script.write_text(render(job), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"output_dir = {job.output_dir!r}: it cannot be written to ({error.strerror}); the "
            "script and the job's log go there"
        ) from error
    return job, script


def submit(script: Path, after: str | None) -> str:
    """Submits a script.

    Args:
        script: Its file.
        after: Job that has to end well before; None: none.

    Returns:
        The job's number.

    Raises:
        InputError: Slurm refuses it; quotes what Slurm says.
    """
    chain = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    command = ["sbatch", "--parsable", *chain, str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = _last_line(done.stderr.splitlines())
        raise InputError(f"{script}: sbatch refuses it ({said})")
    return done.stdout.strip().partition(";")[0]


def _new_folder(root: Path, stage: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    name = f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while True:
        folder = root / (name if number == 1 else f"{name}.{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _last_line(lines: Sequence[str]) -> str:
    return lines[-1].removeprefix("sbatch: error: ") if lines else "it says nothing"
