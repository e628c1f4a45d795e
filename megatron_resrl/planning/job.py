"""What is planned: a recipe on some machines. Each stage says what a step of it is."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_resrl.config.schema import RunSettings
from megatron_resrl.planning.fit import Verdict, advice
from megatron_resrl.planning.generation import GenerationSeconds
from megatron_resrl.planning.layers import Layers
from megatron_resrl.planning.links import Cluster
from megatron_resrl.planning.records import PhaseRecord, RankRecord
from megatron_resrl.planning.seconds import Pipeline
from megatron_resrl.planning.step_work import StepWork
from megatron_resrl.policy.model_shape import ModelShape
from megatron_resrl.policy.sizes import Disk, disk_of

if TYPE_CHECKING:
    from megatron_resrl.planning.dry_run import AnyWorkload


@dataclass(frozen=True)
class Rollouts:
    """What a step does beside training: nothing in most stages."""

    generation: GenerationSeconds | None = None
    transfer: float = 0.0
    """Seconds of sending new weights to the servers."""
    verdicts: tuple[Verdict, ...] = ()
    """On the memory that it needs."""


@dataclass(frozen=True, kw_only=True)
class Job(abc.ABC):
    """A recipe of one stage, its model and its machines."""

    recipe: RunSettings
    model: ModelShape
    cluster: Cluster
    layers: Layers | None = None
    """Of dry runs; None: there are formulas only."""

    @property
    @abc.abstractmethod
    def work(self) -> StepWork:
        """A step whose sequences are as long as they are on average: operations and traffic."""

    @property
    @abc.abstractmethod
    def largest(self) -> StepWork:
        """A step whose sequences are as long as the recipe allows: memory."""

    @property
    @abc.abstractmethod
    def step_in_words(self) -> str:
        """What a step takes, in one line."""

    @abc.abstractmethod
    def step_json(self) -> dict[str, Any]:
        """The same as numbers."""

    @abc.abstractmethod
    def workloads(self) -> tuple[AnyWorkload, AnyWorkload]:
        """What dry runs train on: as long as sequences are on average, and the longest."""

    @property
    def shares_gpus(self) -> bool:
        """Whether servers sleep on the trainer's GPUs while it trains."""
        return False

    @property
    def runs_ahead(self) -> bool:
        """Whether the next step's responses are generated during a step."""
        return False

    @property
    def engine_in_words(self) -> str:
        """What generates."""
        return ""

    @property
    def disk(self) -> Disk:
        """The files of the run."""
        recipe, parameters = self.recipe, self.model.parameters.total
        return disk_of(parameters, recipe.parallel, recipe.precision, self.cluster.world_size)

    def pipeline(self, phase: str) -> Pipeline:
        """How the micro-batches of a phase go through the stages."""
        parallel, work = self.recipe.parallel, self.work
        scoring = phase == "scoring"
        return Pipeline(
            parallel.pipeline_model_parallel_size,
            1 if scoring else parallel.virtual_pipeline_model_parallel_size or 1,
            work.micro_batches if scoring else work.micro_batches_per_update,
        )

    def rollouts(self, ranks: Sequence[RankRecord]) -> Rollouts:
        """What comes on top of the phases of ranks."""
        return Rollouts()

    def rates(self, seconds: float) -> Mapping[str, float]:
        """Tokens per second, model operations and MFU of a step; empty: the stage reports none."""
        return {}

    def changes(self, failing: Sequence[Verdict], ranks: Sequence[RankRecord]) -> list[str]:
        """What to change so that what does not fit fits, the cheapest first."""
        phases = phases_by_verdict(ranks)
        of_phases = [each for each in failing if each.what in phases]
        if not of_phases:
            return []
        first = max(of_phases, key=lambda each: each.needed)
        over = first.needed - first.available
        return advice(self.recipe, phases[first.what], over, self.cluster.gpus_per_node)


def phases_by_verdict(ranks: Sequence[RankRecord]) -> dict[str, PhaseRecord]:
    """The phases of ranks, by what verdicts on them call them."""
    return {f"{phase.name}, {rank.role}": phase for rank in ranks for phase in rank.phases}
