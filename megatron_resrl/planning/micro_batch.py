"""The setting that says how much a micro-batch holds, by kind of recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from megatron_resrl.config.schema import Recipe, RunSettings
from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.config.schema_sft import SftRecipe


@dataclass(frozen=True)
class MicroBatch:
    """How much a micro-batch holds."""

    section: str
    name: str
    value: int
    """Sequences, or tokens of a packed micro-batch of conversations."""
    least: int
    """The smallest value that the recipe allows; larger ones are multiples of it."""

    @property
    def setting(self) -> str:
        """Dotted name."""
        return f"{self.section}.{self.name}"

    def changed(self, recipe: RunSettings, value: int) -> RunSettings:
        """The recipe with another value."""
        section = dataclasses.replace(getattr(recipe, self.section), **{self.name: value})
        return dataclasses.replace(recipe, **{self.section: section})


def micro_batch_of(recipe: RunSettings) -> MicroBatch:
    """The micro-batch of a recipe of any stage."""
    if isinstance(recipe, Recipe):
        return MicroBatch("algorithm", "micro_batch_size", recipe.algorithm.micro_batch_size, 1)
    if isinstance(recipe, SftRecipe) and recipe.batch.sequence_packing:
        longest = recipe.data.max_length
        budget = recipe.batch.tokens_per_micro_batch or longest
        return MicroBatch("batch", "tokens_per_micro_batch", budget, longest)
    assert isinstance(recipe, (SftRecipe, PretrainRecipe)), "a recipe of every stage is known"
    return MicroBatch("batch", "micro_batch_size", recipe.batch.micro_batch_size, 1)
