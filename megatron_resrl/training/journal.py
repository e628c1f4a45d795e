"""What a run writes down, by rank 0 alone: the recipe, metrics, samples, progress."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch.distributed as dist

from megatron_resrl.checkpoint.first_rank import on_first_rank
from megatron_resrl.config.schema import Recipe
from megatron_resrl.observe.metrics import MetricsLogger, set_aside
from megatron_resrl.observe.progress import Progress
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.training.records import dump_batch, readable

logger = logging.getLogger(__name__)


class Journal:
    """Every rank makes the same calls; only rank 0 writes."""

    def __init__(self, recipe: Recipe, *, resume_step: int | None) -> None:
        """
        Args:
            recipe: Settings.
            resume_step: Last step whose records stay; None for a run that begins.

        Raises:
            InputError: On all ranks; a file of the run to be continued holds something else.
        """
        self.directory = Path(recipe.output_dir)
        self.sample_responses = recipe.logging.sample_responses
        self.writes = dist.get_rank() == 0
        on_first_rank(lambda: self._open(recipe, resume_step))

    def _open(self, recipe: Recipe, resume_step: int | None) -> None:
        self.metrics = MetricsLogger(
            self.directory,
            tensorboard=recipe.logging.tensorboard,
            wandb_project=recipe.logging.wandb_project,
            wandb_name=recipe.logging.wandb_name,
            wandb_entity=recipe.logging.wandb_entity,
            wandb_group=recipe.logging.wandb_group,
            wandb_tags=recipe.logging.wandb_tags,
            resume_step=resume_step,
        )
        self.progress = Progress(
            recipe.steps, start=resume_step or 0, bar=recipe.logging.progress_bar
        )

    def write_recipe(self, text: str) -> None:
        """Keeps the resolved recipe beside what it makes; another one is set aside."""
        if not self.writes:
            return
        path = self.directory / "recipe.yaml"
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != text:
            set_aside(path)
        path.write_text(text, encoding="utf-8")

    def begin_steps(self) -> None:
        """Starts the clock of the progress bar."""
        if self.writes:
            self.progress.begin()

    def log(self, step: int, metrics: Mapping[str, float], samples: Sequence[Sample] = ()) -> None:
        """Writes one step's metrics and a few of its samples, and moves the progress bar."""
        if not self.writes:
            return
        self.metrics.log(step, metrics)
        for name, value in metrics.items():
            if name.startswith("eval/") and "@" in name:
                self.progress.message(f"step {step}  {name.removeprefix('eval/')} = {value:.3f}")
        if samples:
            chosen = samples[: self.sample_responses]
            self.metrics.log_samples(step, [readable(sample) for sample in chosen])
            self.progress.update(step, metrics["reward/mean"])

    def dump(self, step: int, samples: Sequence[Sample]) -> None:
        """Keeps the whole batch of a step whose gradient was not finite."""
        if self.writes:
            path = dump_batch(self.directory, step, samples)
            logger.warning(
                "step %d: a gradient was not finite, the update was skipped on all ranks; its "
                "batch is in %s",
                step,
                path,
            )

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.writes:
            self.progress.close()
            self.metrics.close()
