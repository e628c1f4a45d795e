"""Which layouts, recomputation and micro-batch sizes fit, and which of them is fastest."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_resrl.checks.facts import Facts
from megatron_resrl.config.schema import Recipe
from megatron_resrl.planning.forecast import Forecast
from megatron_resrl.planning.recipe_checks import problems_of

_MICRO_BATCH_SIZES = (1, 2, 4, 8)
_RECOMPUTE = (None, "selective", "full")
_CHUNKS = (None, 2, 4)
"""Virtual stages of a rank."""
_SHARED_TOKENS = 4096
"""A sequence is split over ranks only as long as each has so many of its tokens."""


@dataclass(frozen=True)
class Candidate:
    """A recipe that differs in what is searched for."""

    recipe: Recipe
    settings: dict[str, Any]
    """What differs from the recipe that was given, by dotted name."""


@dataclass(frozen=True)
class Ranked:
    """A candidate with its forecast."""

    candidate: Candidate
    forecast: Forecast
    dry_run: bool
    """Whether the forecast is of a dry run, or of formulas."""


def candidates(facts: Facts, gpus_per_node: int) -> Iterator[Candidate]:
    """All recipes that the checks allow.

    Tensor parallelism stays inside of a node, and has sequence parallelism where it is above 1.
    Virtual stages are tried where a replica's micro-batches fill the pipeline, context parallelism
    where each rank keeps 4096 tokens of the longest sequence. Everything else is the recipe's.

    Args:
        facts: Of the recipe, for a machine with CUDA.
        gpus_per_node: GPUs of a node.
    """
    recipe, world = facts.recipe, facts.world_size
    layers = facts.hf_config["num_hidden_layers"]
    experts = (facts.family.experts if facts.family else None) or 1
    for tensor, stages, context in itertools.product(
        _divisors(gpus_per_node), _divisors(layers), _context_sizes(recipe)
    ):
        if world % (tensor * stages * context):
            continue
        for expert_ranks, chunks, recompute, size in itertools.product(
            _expert_sizes(recipe, experts, world, stages),
            _chunks(layers, stages),
            _RECOMPUTE,
            _MICRO_BATCH_SIZES,
        ):
            if chunks and _micro_batches(recipe, world, tensor * stages * context, size) < stages:
                continue
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
            if not problems_of(dataclasses.replace(facts, recipe=found.recipe)):
                yield found


def _context_sizes(recipe: Recipe) -> list[int]:
    """The recipe's, and powers of two that leave each rank enough tokens."""
    longest = recipe.data.max_prompt_length + recipe.rollout.max_response_length
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


def _micro_batches(recipe: Recipe, world: int, model_ranks: int, size: int) -> int:
    """Of one update of a replica."""
    prompts = recipe.rollout.prompts_per_step // recipe.algorithm.updates_per_step
    return prompts * model_ranks // world * recipe.rollout.group_size // size


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _expert_sizes(recipe: Recipe, experts: int, world: int, stages: int) -> list[int]:
    """Numbers of ranks that share the experts; more ranks hold fewer each."""
    if experts == 1:
        return [recipe.parallel.expert_model_parallel_size]
    return [size for size in _divisors(experts) if (world // stages) % size == 0]


def _candidate(
    recipe: Recipe, parallel: dict[str, Any], recompute: str | None, size: int
) -> Candidate:
    model: dict[str, Any] = {
        "recompute_granularity": recompute,
        "recompute_method": "uniform" if recompute == "full" else None,
        "recompute_num_layers": 1 if recompute == "full" else None,
    }
    changed = dataclasses.replace(
        recipe,
        parallel=dataclasses.replace(recipe.parallel, **parallel),
        model=dataclasses.replace(recipe.model, **model),
        algorithm=dataclasses.replace(recipe.algorithm, micro_batch_size=size),
    )
    algorithm: dict[str, Any] = {"micro_batch_size": size}
    settings: dict[str, Any] = {}
    for section, values in (("parallel", parallel), ("model", model), ("algorithm", algorithm)):
        given = getattr(recipe, section)
        settings |= {
            f"{section}.{name}": value
            for name, value in values.items()
            if value != getattr(given, name)
        }
    return Candidate(changed, settings)


def search(
    found: Sequence[Candidate],
    by_formula: Callable[[Recipe], Forecast],
    by_dry_run: Callable[[Recipe], Forecast],
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
