"""A run's status in words."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from collections.abc import Iterator

from megatron_resrl.status.folder import RunStatus

_SHOWN = (
    *("reward/mean", "loss", "grad_norm", "entropy", "learning_rate"),
    *("tokens_per_second", "mfu", "time/step", "time/rollout", "time/update"),
)
"""Metrics of the last step that are printed where it has them; evaluations are, too."""
_QUEUE_S = 5.0
"""Seconds that Slurm may take to answer."""


def report(status: RunStatus, job: str | None = None) -> str:
    """Some lines for people.

    Args:
        status: From `read_status`.
        job: From `job_state`.
    """
    return "\n".join(f"{name:<12} {text}" for name, text in _lines(status, job))


def job_state(job: str | None) -> str | None:
    """What Slurm says of a job, in one line; None: there is no such job, or no Slurm here."""
    if job is None or shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%T, %L left, %R"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_QUEUE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines() if done.returncode == 0 else []
    return lines[0].strip() if lines else None


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min` or `2 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def _lines(status: RunStatus, job: str | None) -> Iterator[tuple[str, str]]:
    yield "run", status.folder
    yield "state", _state(status)
    if status.error:
        yield "said", status.error
    if status.step is not None:
        of_all = "" if status.steps is None else f" of {status.steps}"
        yield "step", f"{status.step}{of_all}{_speed(status)}"
    if status.phase:
        yield "phase", status.phase
    if values := _values(status):
        yield "last step", values
    if where := _where(status):
        yield "process", where
    if status.process.get("job"):
        yield "Slurm job", f"{status.process['job']}{'' if job is None else f': {job}'}"
    if status.starts > 1 or status.failures or status.interruptions:
        yield (
            "history",
            f"{status.starts} starts, {status.interruptions} interruptions, "
            f"{status.failures} failures",
        )
    for each in status.rollbacks:
        yield "rollback", f"from step {each['step']} to {each['to']}: {each['reason']}"
    for saved in status.checkpoints:
        marks = "".join(f", {mark}" for mark in saved.marks)
        damage = "" if saved.whole else ", DAMAGED: files are missing or too short"
        yield "checkpoint", f"step {saved.step}, {saved.num_bytes / 1e9:.3g} GB{marks}{damage}"


def _state(status: RunStatus) -> str:
    words = {
        "silent": "silent: another host does not show whether the run is alive",
        "killed": "killed: its process is gone without a word",
        "unknown": "unknown: an earlier version wrote here, and no run holds the folder",
    }
    text = words.get(status.state, status.state)
    if status.stage:
        text = f"{text} ({status.stage})"
    age = status.sign_of_life_age_s
    return text if age is None else f"{text}, last sign of life {duration(age)} ago"


def _speed(status: RunStatus) -> str:
    text = ""
    if status.seconds_per_step is not None:
        text += f", {status.seconds_per_step:.1f} s per step"
    if status.seconds_left is not None:
        text += f", {duration(status.seconds_left)} left"
    return text


def _values(status: RunStatus) -> str:
    names = [name for name in _SHOWN if name in status.metrics]
    names += [name for name in status.metrics if name.startswith("eval/") and "@" in name]
    values = {name: status.metrics[name] for name in names}
    return "  ".join(
        f"{name} {'not finite' if value is None else format(value, '.4g')}"
        for name, value in values.items()
    )


def _where(status: RunStatus) -> str:
    process = status.process
    if not process.get("host"):
        return ""
    text = f"{process['pid']} on host {process['host']}"
    if process.get("started"):
        since = datetime.datetime.fromtimestamp(process["started"]).astimezone()
        text += f", since {since.isoformat(' ', 'seconds')}"
    return text if not process.get("command") else f"{text}: {process['command']}"
