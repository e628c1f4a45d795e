"""What pretraining checks of its recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from megatron_resrl.checks.batch import check_batch, check_rampup
from megatron_resrl.checks.every_stage import COMMAND_CHECKS, STAGE_CHECKS
from megatron_resrl.checks.facts import PretrainFacts
from megatron_resrl.checks.notes import note_warm_up
from megatron_resrl.checks.weights import WEIGHT_CHECKS
from megatron_resrl.config.problems import Problem


def _check_weights(facts: PretrainFacts) -> Iterator[Problem]:
    if not facts.recipe.model.fresh_weights:
        for check in WEIGHT_CHECKS:
            yield from check(facts)


def _check_corpus(facts: PretrainFacts) -> Iterator[Problem]:
    # Here, because megatron-core, which reads token files, takes seconds to import.
    from megatron_resrl.checks.corpus import check_corpus

    yield from check_corpus(facts)


def _check_positions(length: int, positions: int | None) -> Iterator[Problem]:
    if positions is not None and length > positions:
        problem = f"longer than the model's positions (max_position_embeddings {positions})"
        fix = f"use at most {positions}, or another config.json"
        yield Problem("data.sequence_length", length, problem, fix)


PRETRAIN_BATCH_CHECKS: tuple[Callable[[PretrainFacts], Iterator[Problem]], ...] = (
    lambda facts: check_batch(
        facts.recipe.batch.global_batch_size,
        facts.recipe.batch.micro_batch_size,
        facts.data_parallel_size,
    ),
    lambda facts: check_rampup(
        facts.recipe.batch.rampup_batch_size,
        facts.recipe.batch.global_batch_size,
        facts.recipe.batch.micro_batch_size,
        facts.data_parallel_size,
    ),
    lambda facts: _check_positions(
        facts.recipe.data.sequence_length, facts.hf_config.get("max_position_embeddings")
    ),
)
"""How its batches are shared out and fit the model."""

PRETRAIN_CHECKS: tuple[Callable[[PretrainFacts], Iterator[Problem]], ...] = (
    _check_weights,
    *COMMAND_CHECKS,
    _check_corpus,
    *PRETRAIN_BATCH_CHECKS,
    *STAGE_CHECKS,
    lambda facts: note_warm_up(facts.recipe.optimizer.lr_warmup_steps, facts.recipe.steps),
)
"""Of `pretrain`."""
