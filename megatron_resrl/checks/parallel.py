"""How the ranks share the model and the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_resrl.checks.facts import Check, RunCheck
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import ParallelConfig


def _check_world_size(parallel: ParallelConfig, world_size: int, size: int) -> Iterator[Problem]:
    """`size`: ranks that hold one copy of the model."""
    if size < 1 or world_size % size == 0:
        return
    yield Problem(
        "world size",
        world_size,
        f"not divisible by {size} = tensor_model_parallel_size "
        f"{parallel.tensor_model_parallel_size} x pipeline_model_parallel_size "
        f"{parallel.pipeline_model_parallel_size} x context_parallel_size "
        f"{parallel.context_parallel_size}",
        f"start a multiple of {size} ranks or change the parallel sizes",
    )


def _check_sequence_parallel(parallel: ParallelConfig) -> Iterator[Problem]:
    if parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1:
        yield Problem(
            "parallel.sequence_parallel",
            True,
            "it splits tokens over tensor-parallel ranks, and "
            "parallel.tensor_model_parallel_size is 1",
            "set it to false or use more tensor-parallel ranks",
        )


def _check_virtual_pipeline(
    parallel: ParallelConfig, transformer_fields: Mapping[str, Any]
) -> Iterator[Problem]:
    stages = parallel.virtual_pipeline_model_parallel_size
    if stages is None:
        return
    if parallel.pipeline_model_parallel_size == 1:
        yield Problem(
            "parallel.virtual_pipeline_model_parallel_size",
            stages,
            "interleaving needs pipeline ranks, and parallel.pipeline_model_parallel_size is 1",
            "set it to null or use more pipeline ranks",
        )
    for field, needed in (("batch_p2p_comm", False), ("overlap_p2p_comm", True)):
        if transformer_fields.get(field, needed) != needed:
            yield Problem(
                f"model.megatron.{field}",
                transformer_fields[field],
                "megatron-core's interleaved schedule computes wrong gradients with it, silently",
                f"leave it out ({needed} is used with virtual pipeline stages)",
            )


def _check_updates_per_step(prompts: int, updates: int) -> Iterator[Problem]:
    """Prompts and updates of a step."""
    if updates >= 1 and prompts % updates:
        yield Problem(
            "rollout.prompts_per_step",
            prompts,
            f"not divisible by algorithm.updates_per_step, which is {updates}",
            f"use a multiple of {updates}",
        )


def _check_data_parallel_batch(prompts: int, updates: int, copies: int | None) -> Iterator[Problem]:
    """Prompts and updates of a step; copies of the model."""
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


PARALLEL_CHECKS: tuple[RunCheck, ...] = (
    lambda facts: _check_world_size(
        facts.recipe.parallel, facts.world_size, facts.model_parallel_size
    ),
    lambda facts: _check_sequence_parallel(facts.recipe.parallel),
    lambda facts: _check_virtual_pipeline(facts.recipe.parallel, facts.recipe.model.megatron),
)
TRAINING_BATCH_CHECKS: tuple[Check, ...] = (
    lambda facts: _check_updates_per_step(
        facts.recipe.rollout.prompts_per_step, facts.recipe.algorithm.updates_per_step
    ),
    lambda facts: _check_data_parallel_batch(
        facts.recipe.rollout.prompts_per_step,
        facts.recipe.algorithm.updates_per_step,
        facts.data_parallel_size,
    ),
)
