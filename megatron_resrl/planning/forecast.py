"""The forecast of a job: memory, seconds and what does not fit, from the records of its ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_resrl.planning.fit import Verdict, trainer_verdicts
from megatron_resrl.planning.generation import GenerationSeconds
from megatron_resrl.planning.job import Job
from megatron_resrl.planning.records import PhaseRecord, RankRecord
from megatron_resrl.planning.seconds import PhaseSeconds, phase_seconds, slowest

ONCE = ("build", "checkpoint", "weight_export")
"""Phases that are not part of a step: at the start, every `checkpoint.save_every` steps, at the
end."""


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
        if self.job.runs_ahead:
            ahead = parts.pop("generation", 0.0)
            return max(ahead, sum(parts.values()))
        return sum(parts.values())

    @property
    def rates(self) -> Mapping[str, float]:
        """Tokens per second, model operations and MFU of a step, where the stage reports them."""
        return self.job.rates(self.step_seconds) if self.step_seconds else {}

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
        gpu = self.job.cluster.gpu
        return {
            "gpu": {"name": gpu.name, "memory": gpu.memory},
            "world_size": self.job.cluster.world_size,
            "step": self.job.step_json(),
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
            "throughput": dict(self.rates),
            "disk": vars(self.job.disk),
            "ranks": [rank.to_json() for rank in self.ranks],
        }


def forecast(job: Job, ranks: Sequence[RankRecord]) -> Forecast:
    """Puts the forecast of a job together.

    Args:
        job: Recipe, model, machines and lengths.
        ranks: The job's distinct ranks; counts are of a whole step, peaks of the longest sequences.
    """
    parallel, cluster = job.recipe.parallel, job.cluster
    seconds = {
        rank.role: [
            phase_seconds(phase, parallel, cluster, job.pipeline(phase.name))
            for phase in rank.phases
            if phase.name != "generation"
        ]
        for rank in ranks
    }
    rollouts = job.rollouts(ranks)
    verdicts = (
        *trainer_verdicts(list(ranks), cluster.gpu, asleep_engine=job.shares_gpus),
        *rollouts.verdicts,
    )
    failing = [verdict for verdict in verdicts if not verdict.fits]
    return Forecast(
        job=job,
        ranks=tuple(ranks),
        verdicts=verdicts,
        changes=tuple(dict.fromkeys(job.changes(failing, ranks))),
        phases=slowest(seconds),
        generation=rollouts.generation,
        transfer=rollouts.transfer,
    )
