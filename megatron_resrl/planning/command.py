"""The command `plan`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_resrl.checks.facts import RunFacts, gather_facts
from megatron_resrl.checks.fp8 import check_fp8_device
from megatron_resrl.config.problems import Problem, RecipeError
from megatron_resrl.config.schema import RunSettings
from megatron_resrl.observe.text_table import columns
from megatron_resrl.planning.forecast import Forecast, forecast
from megatron_resrl.planning.formulas import estimate
from megatron_resrl.planning.gpus import Gpu, find_gpu
from megatron_resrl.planning.job import Job
from megatron_resrl.planning.layers import layers_for, layers_sentence
from megatron_resrl.planning.links import Cluster
from megatron_resrl.planning.machine import Machine
from megatron_resrl.planning.micro_batch import micro_batch_of
from megatron_resrl.planning.model_layout import Layout
from megatron_resrl.planning.options import PlanOptions
from megatron_resrl.planning.recipe_checks import check_options, problems_of
from megatron_resrl.planning.report import GIB, layout_words, report
from megatron_resrl.planning.search import Ranked, candidates, search
from megatron_resrl.planning.stages import STAGES_TO_PLAN
from megatron_resrl.policy.model_shape import ModelShape

DOES_NOT_FIT = 1
"""Exit status of a plan that does not fit."""

_LISTED = 15
"""Lines of the table of a search."""


def run_plan(recipe: RunSettings, options: PlanOptions) -> int:
    """Plans a recipe and prints the forecast.

    Args:
        recipe: Its model's directory needs a config.json, and nothing else.
        options: Machines, lengths, and what is wanted.

    Returns:
        Exit status: 0, or `DOES_NOT_FIT`.

    Raises:
        RecipeError: With everything that is wrong with the recipe for so many GPUs.
        SettingError: The GPU is not known, or a length is longer than the recipe allows.
    """
    gpu = find_gpu(options.gpu, options.rates)
    facts, problems = gather_facts(recipe, options.world_size, "cuda")
    problems += check_options(facts, options)
    problems += [
        dataclasses.replace(problem, kind="recipe")
        for problem in check_fp8_device(recipe.precision, gpu.capability, f"--gpu {gpu.name}")
    ]
    if problems:
        raise RecipeError(problems)
    if options.search:
        return _search(facts, gpu, options)
    if problems := problems_of(facts):
        raise RecipeError(problems)
    job = job_of(recipe, model_of(facts), gpu, options)
    found = by_formula(job) if options.quick else by_dry_run(job)
    if options.json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        print("\n".join(report(found)))
    return 0 if found.fits else DOES_NOT_FIT


def model_of(facts: RunFacts) -> ModelShape:
    """The shape of a model that the checks have accepted."""
    assert facts.family is not None, "the checks refuse other models"
    return ModelShape.of(facts.family)


def job_of(recipe: RunSettings, model: ModelShape, gpu: Gpu, options: PlanOptions) -> Job:
    """What is planned.

    Args:
        recipe: Has no problems.
        model: Of the same recipe.
        gpu: With rates.
        options: Machines and lengths.
    """
    cluster = Cluster(options.nodes, options.gpus_per_node, gpu)
    job = STAGES_TO_PLAN[type(recipe)].job(recipe, model, cluster, options)
    layers = None if options.quick else layers_for(options.layers, recipe.precision)
    return dataclasses.replace(job, layers=layers)


def by_dry_run(job: Job) -> Forecast:
    """The forecast from what the product's own code does, on the job's layers."""
    from megatron_resrl.planning.dry_records import dry_records  # It imports megatron-core.

    assert job.layers is not None, "the options ask for dry runs"
    return forecast(job, dry_records(job, Machine(job.layers, job.cluster.gpu)))


def by_formula(job: Job) -> Forecast:
    """The forecast in closed form: scoring, update and vLLM only."""
    recipe = job.recipe
    layout = Layout.of(
        job.model,
        recipe.model,
        recipe.parallel,
        recipe.precision.params_dtype,
        recipe.precision.fp8 is not None,
        job.cluster.world_size,
    )
    return forecast(job, estimate(layout, job.work, job.largest))


def _search(facts: RunFacts, gpu: Gpu, options: PlanOptions) -> int:
    model = model_of(facts)

    def job(recipe: RunSettings) -> Job:
        return job_of(recipe, model, gpu, options)

    found = list(candidates(facts, options.gpus_per_node, job))
    if not found:  # What is wrong is none of what the search changes.
        raise RecipeError(problems_of(facts) or [_nothing_divides(facts)])
    ranked = search(
        found,
        lambda recipe: by_formula(job(recipe)),
        lambda recipe: by_dry_run(job(recipe)),
        0 if options.quick else options.dry_runs,
    )
    if options.json:
        print(json.dumps([_ranked_json(each) for each in ranked], indent=1))
    else:
        print("\n".join(_table(ranked)))
    return 0 if ranked[0].forecast.fits else DOES_NOT_FIT


def _nothing_divides(facts: RunFacts) -> Problem:
    return Problem(
        "world size",
        facts.world_size,
        f"no layout of so many ranks divides the model's layers and heads, and deals the batch of "
        f"a step whole to its replicas ({facts.step_in_words})",
        "give other --nodes or --gpus_per_node, or a larger batch",
    )


def _peak(found: Forecast) -> int:
    return max(verdict.needed for verdict in found.verdicts)


def _table(ranked: Sequence[Ranked]) -> Iterator[str]:
    """The best candidates, and how many there are."""
    job = ranked[0].forecast.job
    fitting = sum(each.forecast.fits for each in ranked)
    yield (
        f"{len(ranked)} layouts of {job.cluster.world_size} {job.cluster.gpu.name}, {fitting} fit; "
        f"needed: GiB of {job.cluster.gpu.memory / GIB:.1f} with the margin"
    )
    if job.layers is not None:
        yield layers_sentence(job.layers)
    rows = [["s per step", "needed", "fits", "layout", "recompute", "micro-batch", "found by"]]
    for each in ranked[:_LISTED]:
        recipe, forecast_of = each.candidate.recipe, each.forecast
        rows.append(
            [
                f"{forecast_of.step_seconds:.1f}",
                f"{_peak(forecast_of) / GIB:.1f}",
                "yes" if forecast_of.fits else "NO",
                layout_words(forecast_of),
                recipe.model.recompute_granularity or "nothing",
                str(micro_batch_of(recipe).value),
                "dry run" if each.dry_run else "formula",
            ]
        )
    yield from columns(rows)
    best = ranked[0]
    if best.forecast.fits:
        changed = best.candidate.settings.items()
        yield "settings of the first:" if changed else "the first is the recipe as it is"
        yield from (f"  --{name} {json.dumps(value)}" for name, value in changed)
    else:
        yield "no layout fits; more GPUs, shorter responses, or what helps the first:"
        yield from (f"  - {change}" for change in best.forecast.changes)


def _ranked_json(ranked: Ranked) -> dict[str, Any]:
    found = ranked.forecast
    return {
        "layout": layout_words(found),
        "settings": ranked.candidate.settings,
        "found_by": "dry run" if ranked.dry_run else "formula",
        "fits": found.fits,
        "needed": _peak(found),
        "step_seconds": found.step_seconds,
        "parts": found.parts,
    }
