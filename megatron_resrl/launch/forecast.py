"""Seconds of a step and of a checkpoint, as `plan --quick` forecasts them."""

from __future__ import annotations

from megatron_resrl.checks.facts import Facts, RunFacts
from megatron_resrl.launch.options import LaunchOptions
from megatron_resrl.planning.command import by_formula, job_of, model_of
from megatron_resrl.planning.gpus import Rates, find_gpu
from megatron_resrl.planning.options import PlanOptions
from megatron_resrl.planning.recipe_checks import problems_of
from megatron_resrl.policy.sizes import sizes_of

_DISK_BYTES_S = 1e9
"""With which a slow file system writes a checkpoint, bytes per second of all ranks together."""


def step_seconds(facts: RunFacts, options: LaunchOptions) -> float | None:
    """Seconds of a step; None: there is no forecast of such a run.

    Args:
        facts: Of a recipe whose model is there.
        options: Nodes and GPUs.
    """
    if facts.family is None or not options.gpus_per_node or problems_of(facts):
        return None
    serving = facts.recipe.vllm.nodes if isinstance(facts, Facts) else 0
    plan = PlanOptions(
        nodes=options.nodes - serving,
        gpus_per_node=options.ranks_on_node,
        gpu=options.gpu,
        quick=True,
    )
    job = job_of(facts.recipe, model_of(facts), find_gpu(options.gpu, Rates()), plan)
    return by_formula(job).step_seconds


def save_seconds(facts: RunFacts) -> float:
    """Seconds of writing a checkpoint to a slow disk; 0: the model is not known yet."""
    if not facts.hf_config or facts.data_parallel_size is None:
        return 0.0
    recipe = facts.recipe
    sizes = sizes_of(recipe.parallel, recipe.precision, facts.world_size, facts.hf_config)
    return sizes.checkpoint / _DISK_BYTES_S
