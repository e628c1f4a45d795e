"""What a run writes down, by rank 0 alone: the recipe, metrics, records of responses, progress."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_resrl.config.schema import LoggingConfig
from megatron_resrl.observe.metrics import MetricsLogger, set_aside
from megatron_resrl.observe.progress import Progress
from megatron_resrl.platform.distributed import run_on_rank_zero

logger = logging.getLogger(__name__)


class Journal(contextlib.AbstractContextManager):
    """Every rank makes the same calls; only rank 0 writes."""

    def __init__(
        self,
        directory: Path,
        settings: LoggingConfig,
        steps: int,
        *,
        headline: str,
        resume_step: int | None,
    ) -> None:
        """
        Args:
            directory: Of the run.
            settings: The recipe's section.
            steps: Of the whole run.
            headline: Metric that the progress display shows; its name up to a "/" is the label.
            resume_step: Last step whose records stay; None for a run that starts.

        Raises:
            InputError: On all ranks; a file of the run to be continued holds something else.
        """
        self.directory = directory
        self._headline = headline
        self._writes = dist.get_rank() == 0
        run_on_rank_zero(lambda: self._open(settings, steps, resume_step))

    def _open(self, settings: LoggingConfig, steps: int, resume_step: int | None) -> None:
        self._metrics = MetricsLogger(
            self.directory,
            tensorboard=settings.tensorboard,
            wandb_project=settings.wandb_project,
            wandb_name=settings.wandb_name,
            wandb_entity=settings.wandb_entity,
            wandb_group=settings.wandb_group,
            wandb_tags=settings.wandb_tags,
            prometheus_port=settings.prometheus_port,
            resume_step=resume_step,
        )
        as_json = settings.format == "json"
        self._progress = Progress(
            steps,
            start=resume_step or 0,
            bar=settings.progress_bar and not as_json,
            write=logger.info if as_json else None,
        )

    def write_recipe(self, text: str) -> None:
        """Keeps the resolved recipe beside what it makes; another one is set aside."""
        if not self._writes:
            return
        path = self.directory / "recipe.yaml"
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != text:
            set_aside(path)
        path.write_text(text, encoding="utf-8")

    def begin_steps(self) -> None:
        """Starts the clock of the progress display."""
        if self._writes:
            self._progress.begin()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one step's metrics; averages and losses of evaluations also go to the terminal."""
        if not self._writes:
            return
        self._metrics.log(step, metrics)
        for name, value in metrics.items():
            if name.startswith("eval/") and ("@" in name or name.endswith("/loss")):
                self._progress.message(f"step {step}  {name.removeprefix('eval/')} = {value:.3f}")

    def finish_step(
        self, step: int, metrics: Mapping[str, float], examples: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Writes one step's metrics and examples, and moves the progress display.

        Args:
            step: Its number, from 1.
            metrics: The headline among them, unless the step did not measure it.
            examples: Objects for people to read, see `MetricsLogger.log_samples`.
        """
        self.log(step, metrics)
        if self._writes:
            self._metrics.log_samples(step, examples)
            label, value = self._headline.partition("/")[0], metrics.get(self._headline)
            self._progress.update(step, "" if value is None else f"{label} {value:.3f}")

    def warn(self, step: int, text: str) -> None:
        """Logs once for all ranks that something is wrong with a step."""
        if self._writes:
            logger.warning("step %d: %s", step, text)

    def dump_path(self, step: int) -> Path:
        """Where `dump` writes."""
        return self.directory / "not_finite" / f"step_{step:06d}.jsonl"

    def dump(self, step: int, batch: Iterable[Mapping[str, Any]]) -> None:
        """Keeps the whole batch of a step whose gradient was not finite, a line for each record."""
        if not self._writes:
            return
        path = self.dump_path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for record in batch:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        logger.warning(
            "step %d: a gradient was not finite, the update was skipped on all ranks; its batch "
            "is in %s",
            step,
            path,
        )

    def __exit__(self, *error: object) -> None:
        if self._writes:
            self._progress.close()
            self._metrics.close()
