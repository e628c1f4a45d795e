"""The command `plan`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_resrl.checks.facts import Facts, gather_facts
from megatron_resrl.checks.fp8 import check_fp8_device
from megatron_resrl.config.problems import Problem, RecipeError
from megatron_resrl.config.schema import Recipe
from megatron_resrl.planning.forecast import Forecast, Job, forecast
from megatron_resrl.planning.formulas import Layout, estimate
from megatron_resrl.planning.generation import Server
from megatron_resrl.planning.gpus import Gpu, find_gpu
from megatron_resrl.planning.layers import layers_for, layers_sentence
from megatron_resrl.planning.links import Cluster
from megatron_resrl.planning.machine import Machine
from megatron_resrl.planning.options import PlanOptions
from megatron_resrl.planning.recipe_checks import problems_of
from megatron_resrl.planning.report import GIB, columns, layout_words, report
from megatron_resrl.planning.search import Ranked, candidates, search
from megatron_resrl.planning.step_shape import StepShape
from megatron_resrl.policy.model_shape import ModelShape

DOES_NOT_FIT = 1
"""Exit status of a plan that does not fit."""

_LISTED = 15
"""Lines of the table of a search."""


def run_plan(recipe: Recipe, options: PlanOptions) -> int:
    """Plans a recipe and prints the forecast.

    Args:
        recipe: Its model's directory needs a config.json, and nothing else.
        options: Machines, lengths, and what is wanted.

    Returns:
        Exit status: 0, or `DOES_NOT_FIT`.

    Raises:
        RecipeError: With everything that is wrong with the recipe for so many GPUs.
        SettingError: The GPU is not known.
    """
    gpu = find_gpu(options.gpu, options.rates)
    facts, problems = gather_facts(recipe, options.world_size, "cuda")
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


def model_of(facts: Facts) -> ModelShape:
    """The shape of a model that the checks have accepted."""
    assert facts.family is not None, "the checks refuse other models"
    return ModelShape.of(facts.family)


def job_of(recipe: Recipe, model: ModelShape, gpu: Gpu, options: PlanOptions) -> Job:
    """What is planned.

    Args:
        recipe: Has no problems.
        model: Of the same recipe.
        gpu: With rates.
        options: Machines and lengths.
    """
    world = options.world_size
    server = Server.of(recipe.vllm)
    if recipe.vllm.urls:  # The recipe does not say how servers were started.
        server = dataclasses.replace(server, gpus=options.server_gpus or 1)
    step = StepShape.of(recipe, world, options.prompt_tokens, options.response_tokens)
    return Job(
        recipe=recipe,
        model=model,
        cluster=Cluster(options.nodes, options.gpus_per_node, gpu),
        step=step,
        longest=StepShape.of(recipe, world),
        server=server,
        decode_host_s=options.decode_host_ms / 1e3,
        layers=None if options.quick else layers_for(options.layers, recipe.precision),
    )


def by_dry_run(job: Job) -> Forecast:
    """The forecast from what the product's own code does, on the job's layers."""
    from megatron_resrl.planning.dry_records import dry_records  # It imports megatron-core.

    assert job.layers is not None, "the options ask for dry runs"
    machine = Machine(job.layers, job.cluster.gpu)
    records = dry_records(job.recipe, job.cluster.world_size, job.step, job.longest, machine)
    return forecast(job, records)


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
    return forecast(job, estimate(layout, job.step, job.longest))


def _search(facts: Facts, gpu: Gpu, options: PlanOptions) -> int:
    found = list(candidates(facts, options.gpus_per_node))
    if not found:  # What is wrong is none of what the search changes.
        raise RecipeError(problems_of(facts) or [_nothing_divides(facts)])
    model = model_of(facts)
    ranked = search(
        found,
        lambda recipe: by_formula(job_of(recipe, model, gpu, options)),
        lambda recipe: by_dry_run(job_of(recipe, model, gpu, options)),
        0 if options.quick else options.dry_runs,
    )
    if options.json:
        print(json.dumps([_ranked_json(each) for each in ranked], indent=1))
    else:
        print("\n".join(_table(ranked)))
    return 0 if ranked[0].forecast.fits else DOES_NOT_FIT


def _nothing_divides(facts: Facts) -> Problem:
    prompts = facts.recipe.rollout.prompts_per_step
    return Problem(
        "world size",
        facts.world_size,
        f"no layout of so many ranks divides the model's layers and heads and deals "
        f"rollout.prompts_per_step {prompts} whole to its replicas",
        "give other --nodes or --gpus_per_node, or more prompts",
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
                str(recipe.algorithm.micro_batch_size),
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
