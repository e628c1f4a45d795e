"""How the ranks share the model and the batch."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_resrl.checks.facts import Facts
from megatron_resrl.config.problems import Problem


def _check_world_size(facts: Facts) -> Iterator[Problem]:
    parallel, size = facts.recipe.parallel, facts.model_parallel_size
    if size < 1 or facts.world_size % size == 0:
        return
    yield Problem(
        "world size",
        facts.world_size,
        f"not divisible by {size} = tensor_model_parallel_size "
        f"{parallel.tensor_model_parallel_size} x pipeline_model_parallel_size "
        f"{parallel.pipeline_model_parallel_size} x context_parallel_size "
        f"{parallel.context_parallel_size}",
        f"start a multiple of {size} ranks or change the parallel sizes",
    )


def _check_sequence_parallel(facts: Facts) -> Iterator[Problem]:
    parallel = facts.recipe.parallel
    if parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1:
        yield Problem(
            "parallel.sequence_parallel",
            True,
            "it splits tokens over tensor-parallel ranks, and "
            "parallel.tensor_model_parallel_size is 1",
            "set it to false or use more tensor-parallel ranks",
        )


def _check_virtual_pipeline(facts: Facts) -> Iterator[Problem]:
    recipe = facts.recipe
    stages = recipe.parallel.virtual_pipeline_model_parallel_size
    if stages is None:
        return
    if recipe.parallel.pipeline_model_parallel_size == 1:
        yield Problem(
            "parallel.virtual_pipeline_model_parallel_size",
            stages,
            "interleaving needs pipeline ranks, and parallel.pipeline_model_parallel_size is 1",
            "set it to null or use more pipeline ranks",
        )
    for field, needed in (("batch_p2p_comm", False), ("overlap_p2p_comm", True)):
        if recipe.model.megatron.get(field, needed) != needed:
            yield Problem(
                f"model.megatron.{field}",
                recipe.model.megatron[field],
                "megatron-core's interleaved schedule computes wrong gradients with it, silently",
                f"leave it out ({needed} is used with virtual pipeline stages)",
            )


def _check_updates_per_step(facts: Facts) -> Iterator[Problem]:
    prompts = facts.recipe.rollout.prompts_per_step
    updates = facts.recipe.algorithm.updates_per_step
    if updates >= 1 and prompts % updates:
        yield Problem(
            "rollout.prompts_per_step",
            prompts,
            f"not divisible by algorithm.updates_per_step, which is {updates}",
            f"use a multiple of {updates}",
        )


def _check_data_parallel_batch(facts: Facts) -> Iterator[Problem]:
    prompts = facts.recipe.rollout.prompts_per_step
    updates, copies = facts.recipe.algorithm.updates_per_step, facts.data_parallel_size
    if updates < 1 or prompts % updates or copies is None:
        return
    if (prompts // updates) % copies:
        yield Problem(
            "rollout.prompts_per_step",
            prompts,
            f"{prompts // updates} prompts per mini-batch (algorithm.updates_per_step is "
            f"{updates}) cannot be dealt whole to {copies} data-parallel copies of the model",
            f"use a multiple of {updates * copies}",
        )


PARALLEL_CHECKS = (
    _check_world_size,
    _check_sequence_parallel,
    _check_virtual_pipeline,
)
TRAINING_BATCH_CHECKS = (_check_updates_per_step, _check_data_parallel_batch)
