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


PRETRAIN_CHECKS: tuple[Callable[[PretrainFacts], Iterator[Problem]], ...] = (
    _check_weights,
    *COMMAND_CHECKS,
    _check_corpus,
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
    *STAGE_CHECKS,
    lambda facts: note_warm_up(facts.recipe.optimizer.lr_warmup_steps, facts.recipe.steps),
)
"""Of `pretrain`."""
