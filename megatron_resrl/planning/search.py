"""Which layouts, recomputation and micro-batch sizes fit, and which of them is fastest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_resrl.checks.facts import Facts
from megatron_resrl.config.schema import Recipe
from megatron_resrl.planning.forecast import Forecast
from megatron_resrl.planning.recipe_checks import problems_of

_MICRO_BATCH_SIZES = (1, 2, 4, 8)
_RECOMPUTE = (None, "full")


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
    Context parallelism, virtual stages and everything else are the recipe's.

    Args:
        facts: Of the recipe, for a machine with CUDA.
        gpus_per_node: GPUs of a node.
    """
    recipe, world = facts.recipe, facts.world_size
    context = recipe.parallel.context_parallel_size
    layers = facts.hf_config["num_hidden_layers"]
    experts = (facts.family.experts if facts.family else None) or 1
    for tensor in _divisors(gpus_per_node):
        for stages in _divisors(layers):
            if world % (tensor * stages * context):
                continue
            for expert_ranks in _expert_sizes(recipe, experts, world, stages):
                for recompute in _RECOMPUTE:
                    for size in _MICRO_BATCH_SIZES:
                        found = _candidate(recipe, tensor, stages, expert_ranks, recompute, size)
                        if not problems_of(dataclasses.replace(facts, recipe=found.recipe)):
                            yield found


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _expert_sizes(recipe: Recipe, experts: int, world: int, stages: int) -> list[int]:
    """Numbers of ranks that share the experts; more ranks hold fewer each."""
    if experts == 1:
        return [recipe.parallel.expert_model_parallel_size]
    return [size for size in _divisors(experts) if (world // stages) % size == 0]


def _candidate(
    recipe: Recipe,
    tensor: int,
    stages: int,
    experts: int,
    recompute: str | None,
    size: int,
) -> Candidate:
    parallel: dict[str, Any] = {
        "tensor_model_parallel_size": tensor,
        "pipeline_model_parallel_size": stages,
        "virtual_pipeline_model_parallel_size": None,
        "expert_model_parallel_size": experts,
        "expert_tensor_parallel_size": 1 if experts > 1 else None,
        "sequence_parallel": tensor > 1,
    }
    model: dict[str, Any] = {
        "recompute_granularity": recompute,
        "recompute_method": "uniform" if recompute else None,
        "recompute_num_layers": 1 if recompute else None,
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
