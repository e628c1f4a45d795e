"""The forecast of a job: memory, seconds and what does not fit, from the records of its ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_resrl.config.schema import Recipe
from megatron_resrl.planning.embedded import EmbeddedEngine
from megatron_resrl.planning.fit import (
    Verdict,
    advice,
    cache_advice,
    server_advice,
    server_verdicts,
    trainer_verdicts,
    with_margin,
)
from megatron_resrl.planning.generation import (
    GenerationSeconds,
    Server,
    generation_seconds,
    server_memory,
    transfer_seconds,
)
from megatron_resrl.planning.layers import Layers
from megatron_resrl.planning.links import Cluster
from megatron_resrl.planning.records import PhaseRecord, RankRecord
from megatron_resrl.planning.seconds import PhaseSeconds, Pipeline, phase_seconds, slowest
from megatron_resrl.planning.step_shape import StepShape
from megatron_resrl.policy.model_shape import ModelShape

ONCE = ("build", "checkpoint", "weight_export")
"""Phases that are not part of a step: at the start, every `checkpoint.save_every` steps, at the
end."""


@dataclass(frozen=True)
class Job:
    """What is planned."""

    recipe: Recipe
    model: ModelShape
    cluster: Cluster
    step: StepShape
    """As long as responses are on average."""
    longest: StepShape
    """As long as the recipe allows."""
    server: Server
    """One of the vLLM servers, if they generate."""
    decode_host_s: float = 0.0
    layers: Layers | None = None
    """Of dry runs; None: there are formulas only."""

    @property
    def uses_vllm(self) -> bool:
        """Whether servers generate."""
        return self.recipe.rollout.engine == "vllm" and self.recipe.rollout.replay is None

    @property
    def colocated(self) -> bool:
        """Whether the servers share the trainer's GPUs."""
        return self.uses_vllm and self.recipe.rollout.placement == "colocated"

    @property
    def embedded(self) -> EmbeddedEngine | None:
        """The policy as its own engine; None: it does not generate."""
        rollout = self.recipe.rollout
        if rollout.engine != "megatron" or rollout.replay is not None:
            return None
        return EmbeddedEngine(self.model, self.recipe.parallel, rollout.max_running_samples)

    @property
    def servers(self) -> int:
        """vLLM servers that generate."""
        return len(self.recipe.vllm.urls) or self.recipe.vllm.servers

    def pipeline(self, phase: str) -> Pipeline:
        """How the micro-batches of a phase go through the stages."""
        parallel, step = self.recipe.parallel, self.step
        scoring = phase == "scoring"
        return Pipeline(
            parallel.pipeline_model_parallel_size,
            1 if scoring else parallel.virtual_pipeline_model_parallel_size or 1,
            step.micro_batches if scoring else step.micro_batches_per_update,
        )


@dataclass(frozen=True)
class Forecast:
    """All that `plan` says."""

    job: Job
    ranks: tuple[RankRecord, ...]
    verdicts: tuple[Verdict, ...]
    changes: tuple[str, ...]
    """What would make it fit; empty if it does."""
    phases: dict[str, tuple[str, PhaseSeconds]]
    """Slowest rank's role and seconds, by phase; those of generation are in `generation`."""
    generation: GenerationSeconds | None
    """None: responses are replayed, or vLLM cannot start."""
    transfer: float
    """Seconds of sending new weights to vLLM; 0: nothing is sent."""

    @property
    def fits(self) -> bool:
        """Whether every phase fits on every rank, and vLLM beside it."""
        return all(verdict.fits for verdict in self.verdicts)

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of a step, by phase, in order."""
        parts = {
            name: seconds.total for name, (_, seconds) in self.phases.items() if name not in ONCE
        }
        if self.generation is not None:
            parts = {"generation": self.generation.total} | parts
        return parts | ({"weight_transfer": self.transfer} if self.transfer else {})

    @property
    def step_seconds(self) -> float:
        """Of a step whose phases follow each other; where generation runs ahead, of the longer of
        generation and the rest."""
        parts = dict(self.parts)
        if self.job.recipe.rollout.max_staleness > 0:
            ahead = parts.pop("generation", 0.0)
            return max(ahead, sum(parts.values()))
        return sum(parts.values())

    def most_demanding(self) -> dict[str, tuple[str, PhaseRecord]]:
        """Role and record of the rank that needs most memory, by phase."""
        found: dict[str, tuple[str, PhaseRecord]] = {}
        for rank in self.ranks:
            for phase in rank.phases:
                if phase.name not in found or phase.peak_bytes > found[phase.name][1].peak_bytes:
                    found[phase.name] = (rank.role, phase)
        return found

    def record(self, role: str, name: str) -> PhaseRecord:
        """The record of a phase of the rank with a role."""
        rank = next(rank for rank in self.ranks if rank.role == role)
        return next(phase for phase in rank.phases if phase.name == name)

    def slowest_records(self) -> dict[str, PhaseRecord]:
        """The record of the slowest rank by phase; where seconds do not come from records, of the
        rank that needs most memory."""
        roles = {name: role for name, (role, _) in self.most_demanding().items()}
        roles |= {name: role for name, (role, _) in self.phases.items()}
        return {name: self.record(role, name) for name, role in roles.items()}

    def to_json(self) -> dict[str, Any]:
        """Everything, as `--json` prints it."""
        gpu, step = self.job.cluster.gpu, self.job.step
        return {
            "gpu": {"name": gpu.name, "memory": gpu.memory},
            "world_size": self.job.cluster.world_size,
            "step": {
                "responses": step.responses,
                "prompt_tokens": step.prompt_tokens,
                "response_tokens": step.lengths.mean,
                "micro_batches": step.micro_batches,
                "updates": step.updates,
            },
            "layers": self.job.layers,
            "fits": self.fits,
            "verdicts": [{**vars(each), "fits": each.fits} for each in self.verdicts],
            "changes": list(self.changes),
            "seconds": {
                "step": self.step_seconds,
                "parts": self.parts,
                "details": {
                    name: {"role": role, **vars(seconds), "total": seconds.total}
                    for name, (role, seconds) in self.phases.items()
                },
            },
            "ranks": [rank.to_json() for rank in self.ranks],
        }


def forecast(job: Job, ranks: Sequence[RankRecord]) -> Forecast:
    """Puts the forecast of a job together.

    Args:
        job: Recipe, model, machines and lengths.
        ranks: The job's distinct ranks; counts are of a whole step, peaks of the longest responses.
    """
    recipe, cluster = job.recipe, job.cluster
    seconds = {
        rank.role: [
            phase_seconds(phase, recipe.parallel, cluster, job.pipeline(phase.name))
            for phase in rank.phases
            if phase.name != "generation"
        ]
        for rank in ranks
    }
    verdicts = list(trainer_verdicts(list(ranks), cluster.gpu, asleep_engine=job.colocated))
    generation, transfer = None, 0.0
    if job.uses_vllm:
        verdicts += _server_verdicts(job, ranks)
        generation = generation_seconds(
            job.step, job.servers, job.server, job.model, cluster.gpu, host_s=job.decode_host_s
        )
        transfer = transfer_seconds(job.model)
    if engine := job.embedded:
        generation = engine.seconds(job.step, cluster.gpu)
        verdicts += _cache_verdicts(job, engine, ranks)
    failing = [verdict for verdict in verdicts if not verdict.fits]
    return Forecast(
        job=job,
        ranks=tuple(ranks),
        verdicts=tuple(verdicts),
        changes=tuple(_changes(job, failing, ranks)),
        phases=slowest(seconds),
        generation=generation,
        transfer=transfer,
    )


def _cache_verdicts(
    job: Job, engine: EmbeddedEngine, ranks: Sequence[RankRecord]
) -> Iterator[Verdict]:
    """The cache beside what a rank holds between phases, where no dry run has decoded."""
    if any(phase.name == "generation" for rank in ranks for phase in rank.phases):
        return
    cache = engine.cache_bytes(job.longest)
    for rank in ranks:
        held = max((p.start_bytes for p in rank.phases if p.name == "scoring"), default=0)
        needed = with_margin(held + cache)
        yield Verdict(f"generation, {rank.role}", needed, job.cluster.gpu.memory)


def _server_verdicts(job: Job, ranks: Sequence[RankRecord]) -> list[Verdict]:
    server = job.server
    memory = server_memory(server, job.model, job.cluster.gpu)
    tokens = job.longest.prompt_tokens + job.longest.lengths.limit
    per_response = tokens * job.model.cache_per_token / min(server.gpus, job.model.key_heads)
    resident = 0
    if job.colocated:
        # The trainer's state stays on the GPU while the server is awake.
        scoring = (p for r in ranks for p in r.phases if p.name == "scoring")
        resident = max((phase.start_bytes for phase in scoring), default=0)
    return list(
        server_verdicts(
            server,
            memory,
            job.cluster.gpu,
            per_response=math.ceil(per_response),
            resident=resident,
        )
    )


def _changes(job: Job, failing: Sequence[Verdict], ranks: Sequence[RankRecord]) -> list[str]:
    """What to change, for the trainer and for vLLM."""
    found: list[str] = []
    phases = {f"{phase.name}, {rank.role}": phase for rank in ranks for phase in rank.phases}
    worst = max(failing, key=lambda each: each.needed - each.available, default=None)
    of_phases = [each for each in failing if each.what in phases]
    if of_phases:
        first = max(of_phases, key=lambda each: each.needed)
        over = first.needed - first.available
        found += advice(job.recipe, phases[first.what], over, job.cluster.gpus_per_node)
    decoding = [
        each for each in failing if each.what.startswith("generation") and each.what not in phases
    ]
    if decoding and job.embedded:
        over = max(each.needed - each.available for each in decoding)
        cache = cache_advice(job.recipe, job.embedded.cache_bytes(job.longest), over)
        found.insert(0 if worst in decoding else len(found), cache)
    for each in failing:
        if each.what.startswith("vLLM"):
            found += server_advice(job.server, each, job.cluster.gpu)
    return list(dict.fromkeys(found))
