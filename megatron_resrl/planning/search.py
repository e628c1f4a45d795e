"""Which layouts, recomputation and micro-batch sizes fit, and which of them is fastest."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_resrl.checks.facts import RunFacts
from megatron_resrl.config.schema import ParallelConfig, RunSettings
from megatron_resrl.planning.forecast import Forecast
from megatron_resrl.planning.job import Job
from megatron_resrl.planning.micro_batch import micro_batch_of
from megatron_resrl.planning.recipe_checks import problems_of

_MICRO_BATCH_SIZES = (1, 2, 4, 8)
"""Times the smallest that the recipe allows."""
_RECOMPUTE = (None, "selective", "full")
_CHUNKS = (None, 2, 4)
"""Virtual stages of a rank."""
_SHARED_TOKENS = 4096
"""A sequence is split over ranks only as long as each has so many of its tokens."""


@dataclass(frozen=True)
class Candidate:
    """A recipe that differs in what is searched for."""

    recipe: RunSettings
    settings: dict[str, Any]
    """What differs from the recipe that was given, by dotted name."""


@dataclass(frozen=True)
class Ranked:
    """A candidate with its forecast."""

    candidate: Candidate
    forecast: Forecast
    dry_run: bool
    """Whether the forecast is of a dry run, or of formulas."""


def candidates(
    facts: RunFacts, gpus_per_node: int, job_of: Callable[[RunSettings], Job]
) -> Iterator[Candidate]:
    """All recipes that the checks allow.

    Tensor parallelism stays inside of a node, and has sequence parallelism where it is above 1.
    Virtual stages are tried where a replica's micro-batches fill the pipeline, context parallelism
    where each rank keeps 4096 tokens of the longest sequence. Everything else is the recipe's.

    Args:
        facts: Of the recipe, for a machine with CUDA.
        gpus_per_node: GPUs of a node.
        job_of: The job of a recipe whose layout divides the ranks.
    """
    recipe, world = facts.recipe, facts.world_size
    layers = facts.hf_config["num_hidden_layers"]
    experts = (facts.family.experts if facts.family else None) or 1
    for tensor, stages, context in itertools.product(
        _divisors(gpus_per_node), _divisors(layers), _context_sizes(recipe, job_of)
    ):
        if world % (tensor * stages * context):
            continue
        for expert_ranks, chunks, recompute, size in itertools.product(
            _expert_sizes(recipe, experts, world, stages),
            _chunks(layers, stages),
            _RECOMPUTE,
            _MICRO_BATCH_SIZES,
        ):
            parallel = {
                "tensor_model_parallel_size": tensor,
                "pipeline_model_parallel_size": stages,
                "virtual_pipeline_model_parallel_size": chunks,
                "context_parallel_size": context,
                "expert_model_parallel_size": expert_ranks,
                "expert_tensor_parallel_size": 1 if expert_ranks > 1 else None,
                "sequence_parallel": tensor > 1,
            }
            found = _candidate(recipe, parallel, recompute, size)
            if problems_of(dataclasses.replace(facts, recipe=found.recipe)):
                continue
            if not chunks or job_of(found.recipe).work.micro_batches_per_update >= stages:
                yield found


def _context_sizes(recipe: RunSettings, job_of: Callable[[RunSettings], Job]) -> list[int]:
    """The recipe's, and powers of two that leave each rank enough tokens."""
    alone = dataclasses.replace(recipe, parallel=ParallelConfig())
    longest = job_of(alone).largest.row
    sizes = {recipe.parallel.context_parallel_size, 1}
    size = 2
    while longest >= size * _SHARED_TOKENS:
        sizes.add(size)
        size *= 2
    return sorted(sizes)


def _chunks(layers: int, stages: int) -> list[int | None]:
    if stages == 1:
        return [None]
    return [chunks for chunks in _CHUNKS if layers % (stages * (chunks or 1)) == 0]


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _expert_sizes(recipe: RunSettings, experts: int, world: int, stages: int) -> list[int]:
    """Numbers of ranks that share the experts; more ranks hold fewer each."""
    if experts == 1:
        return [recipe.parallel.expert_model_parallel_size]
    return [size for size in _divisors(experts) if (world // stages) % size == 0]


def _candidate(
    recipe: RunSettings, parallel: dict[str, Any], recompute: str | None, size: int
) -> Candidate:
    model: dict[str, Any] = {
        "recompute_granularity": recompute,
        "recompute_method": "uniform" if recompute == "full" else None,
        "recompute_num_layers": 1 if recompute == "full" else None,
    }
    micro_batch = micro_batch_of(recipe)
    value = size * micro_batch.least
    changed = dataclasses.replace(
        micro_batch.changed(recipe, value),
        parallel=dataclasses.replace(recipe.parallel, **parallel),
        model=dataclasses.replace(recipe.model, **model),
    )
    settings: dict[str, Any] = {}
    for section, values in (("parallel", parallel), ("model", model)):
        given = getattr(recipe, section)
        settings |= {
            f"{section}.{name}": value
            for name, value in values.items()
            if value != getattr(given, name)
        }
    if value != micro_batch.value:
        settings[micro_batch.setting] = value
    return Candidate(changed, settings)


def search(
    found: Sequence[Candidate],
    by_formula: Callable[[RunSettings], Forecast],
    by_dry_run: Callable[[RunSettings], Forecast],
    dry_runs: int,
) -> list[Ranked]:
    """Ranks candidates: those that were dry-run first, by whether they fit and by seconds.

    Args:
        found: At least one.
        by_formula: The forecast of a recipe in closed form.
        by_dry_run: That of its dry run.
        dry_runs: How many of those that the formulas find fastest are dry-run.
    """
    ranked = sorted((Ranked(each, by_formula(each.recipe), False) for each in found), key=_order)
    best = [
        Ranked(each.candidate, by_dry_run(each.candidate.recipe), True)
        for each in ranked[:dry_runs]
        if each.forecast.fits
    ]
    return sorted(best, key=_order) + ranked[len(best) :]


def _order(ranked: Ranked) -> tuple[bool, float]:
    return not ranked.forecast.fits, ranked.forecast.step_seconds
