"""Metrics of each step: JSON lines always, TensorBoard and Weights & Biases if asked for."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from megatron_resrl.errors import InputError
from megatron_resrl.observe.prometheus_endpoint import PrometheusEndpoint
from megatron_resrl.observe.wandb_sink import WandbRun, WeightsAndBiases


class _Sink(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsLogger(contextlib.AbstractContextManager):
    """Writes metrics and sample responses of a run. For one rank only: others construct none.

    `<output_dir>/metrics.jsonl` has one object per step: `step`, `time` (seconds since 1970) and
    the metrics; a value that is not finite is null there, because JSON has no word for it.
    `<output_dir>/samples.jsonl` has one object per sample response, with its `step`.

    Args:
        output_dir: Directory of the run; made if absent.
        tensorboard: Write events to `<output_dir>/tensorboard`.
        wandb_project: Weights & Biases project; None: off.
        wandb_name, wandb_entity, wandb_group, wandb_tags: See `logging.wandb_name` and so on.
        prometheus_port: Port for scrapers; None: none.
        resume_step: The run continues after this step: what the files hold of later steps is
            dropped, since those steps are done again. None: a new run; files of an earlier run
            in the directory are set aside under another name.

    Raises:
        ImportError: Weights & Biases or Prometheus is asked for and not installed.
        InputError: A file of the run to be continued holds something else.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        tensorboard: bool,
        wandb_project: str | None,
        wandb_name: str | None = None,
        wandb_entity: str | None = None,
        wandb_group: str | None = None,
        wandb_tags: Sequence[str] = (),
        prometheus_port: int | None = None,
        resume_step: int | None = None,
    ) -> None:
        directory = Path(output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        self._metrics = _StepLines(directory / "metrics.jsonl", resume_step)
        self._samples = _StepLines(directory / "samples.jsonl", resume_step)
        self._last_step = self._metrics.last_step
        self._sinks: list[_Sink] = []
        if tensorboard:
            self._sinks.append(_TensorBoard(directory / "tensorboard", resume_step))
        if wandb_project is not None:
            names = WandbRun(wandb_project, wandb_name, wandb_entity, wandb_group, wandb_tags)
            self._sinks.append(WeightsAndBiases(names, directory, resume_step))
        if prometheus_port is not None:
            self._sinks.append(PrometheusEndpoint(prometheus_port))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one step's metrics.

        Args:
            step: Larger than any step logged before.
            metrics: Name -> value; names with "/" are grouped by TensorBoard.

        Raises:
            ValueError: The step has been logged already.
        """
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(
                f"metrics of step {step} come after those of step {self._last_step}; "
                "a step is logged once, with all its metrics"
            )
        self._last_step = step
        values = {name: float(value) for name, value in metrics.items()}
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        self._metrics.write({"step": step, "time": round(time.time(), 3), **finite})
        for sink in self._sinks:
            sink.log(step, values)

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Writes sample responses of a step, to be read by people.

        Args:
            step: The step that made them.
            samples: JSON-ready objects, e.g. prompt, response, reward.
        """
        for sample in samples:
            self._samples.write({"step": step, **sample})

    def close(self) -> None:
        """Flushes and closes everything."""
        self._metrics.close()
        self._samples.close()
        for sink in self._sinks:
            sink.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class _StepLines:
    """A file of JSON lines that each have a `step`."""

    def __init__(self, path: Path, resume_step: int | None) -> None:
        self.last_step: int | None = None
        if resume_step is None:
            set_aside(path)
        elif path.exists():
            self.last_step = _keep_steps(path, resume_step)
        # Half a surrogate pair, which is no character, becomes the escape that JSON has for it.
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n")

    def write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def set_aside(path: Path, number: int | None = None) -> None:
    """Renames what an earlier run left: metrics.jsonl becomes metrics.1.jsonl, and so on.

    Args:
        path: A file, which may be empty or not be there, or a folder.
        number: Of the new name; None: the first that is free.
    """
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):
        return
    path.rename(aside_name(path, free_number([path]) if number is None else number))


def aside_name(path: Path, number: int) -> Path:
    """What something is called once it is set aside."""
    return path.with_suffix(f".{number}{path.suffix}")


def free_number(paths: Iterable[Path]) -> int:
    """The first number from 1 under which nothing has been set aside of any of these paths."""
    number, paths = 1, list(paths)
    while any(aside_name(path, number).exists() for path in paths):
        number += 1
    return number


def _keep_steps(path: Path, last: int) -> int | None:
    """Drops lines of steps after `last`, and a line torn by a crash; atomic.

    Returns:
        The largest step kept; None if no line is left.
    """
    kept: list[bytes] = []
    newest: int | None = None
    # Bytes, because a crash may have cut a character, and because text has other line ends, which
    # JSON leaves as they are. What follows the last line end was not written whole.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            step = int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {number} is not a JSON object with a step ({error}); "
                "move the file away to continue the run"
            ) from error
        if step <= last:
            kept.append(line)
            newest = step if newest is None else max(newest, step)
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.writelines(line + b"\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    return newest


class _TensorBoard:
    def __init__(self, directory: Path, resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events of steps that are done again are hidden by TensorBoard from this step on.
        purge = 0 if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(directory), purge_step=purge)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
