"""How much work a step is: responses, micro-batches and tokens of one replica."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_resrl.config.schema import Recipe
from megatron_resrl.planning.lengths import Lengths
from megatron_resrl.planning.passes import (
    forward_passes,
    reference_passes,
    responses_to_a_prompt,
)
from megatron_resrl.planning.step_work import StepWork, replicas_of


@dataclass(frozen=True)
class StepShape:
    """One step of a recipe on a number of ranks."""

    prompts: int
    """Of the whole step."""
    group_size: int
    """Responses of a prompt."""
    prompt_tokens: int
    """Of one prompt."""
    lengths: Lengths
    replicas: int
    """Data-parallel copies of the model."""
    updates: int
    """Optimizer steps."""
    micro_batch_size: int
    packed: bool
    passes: int = 2
    """Forward passes of a response, those of a reference included; see `forward_passes`."""
    together: int = 1
    """Responses that share a prompt in an update; see `responses_to_a_prompt`."""
    scored_together: int = 1
    """The same in a scoring pass."""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        world_size: int,
        layers: int,
        prompt_tokens: int | None = None,
        response_tokens: float | None = None,
    ) -> StepShape:
        """The step of a recipe.

        Args:
            recipe: Its layout divides the ranks.
            world_size: Ranks.
            layers: Of the model.
            prompt_tokens: Mean; None: as long as the recipe allows.
            response_tokens: Mean; None: as long as the recipe allows.
        """
        rollout = recipe.rollout
        limit = rollout.max_response_length
        prompt = prompt_tokens or recipe.data.max_prompt_length
        lengths = Lengths(response_tokens or limit, limit)
        passes = forward_passes(recipe, layers, prompt + lengths.mean)
        together = responses_to_a_prompt(recipe, by_correctness=passes == 1)
        return cls(
            prompts=rollout.prompts_per_step,
            group_size=rollout.group_size,
            prompt_tokens=prompt,
            lengths=lengths,
            replicas=replicas_of(recipe.parallel, world_size),
            updates=recipe.algorithm.updates_per_step,
            micro_batch_size=recipe.algorithm.micro_batch_size,
            packed=recipe.algorithm.sequence_packing or together > 1,
            passes=passes + reference_passes(recipe),
            together=together,
            scored_together=responses_to_a_prompt(recipe, by_correctness=True),
        )

    @property
    def responses(self) -> int:
        """Of the whole step."""
        return self.prompts * self.group_size

    @property
    def per_replica(self) -> int:
        """Responses of the replica that has most."""
        return math.ceil(self.prompts / self.replicas) * self.group_size

    @property
    def micro_batches(self) -> int:
        """Of a replica's pass over all of its responses."""
        return math.ceil(self.per_replica / self.micro_batch_size)

    @property
    def micro_batches_per_update(self) -> int:
        """Of one update of a replica."""
        own = math.ceil(self.per_replica / self.updates)
        return math.ceil(own / self.micro_batch_size)

    @property
    def response_row(self) -> float:
        """Tokens that a response takes in a micro-batch: its own if packed, otherwise those of the
        longest response of the micro-batch."""
        return self.lengths.mean if self.packed else self.lengths.longest_of(self.micro_batch_size)

    @property
    def row_tokens(self) -> float:
        """The same with its prompt."""
        return self.prompt_tokens + self.response_row

    @property
    def tokens(self) -> float:
        """Prompt and response tokens of the whole step, without padding."""
        return self.responses * (self.prompt_tokens + self.lengths.mean)

    @property
    def work(self) -> StepWork:
        """What the step asks of a replica."""
        scoring = self._work(self.scored_together, None) if self.passes > 1 else None
        return self._work(self.together, scoring)

    def _work(self, together: int, scoring: StepWork | None) -> StepWork:
        """With micro-batches in which so many neighbours share a prompt."""
        size, prompt, response = self.micro_batch_size, self.prompt_tokens, self.response_row
        prompts = max(1.0, size / together)
        return StepWork(
            replicas=self.replicas,
            updates=self.updates,
            micro_batches=self.micro_batches,
            micro_batches_per_update=self.micro_batches_per_update,
            tokens=prompts * prompt + size * response,
            row=self.row_tokens,
            pairs=prompts * prompt**2 / 2 + size * (prompt * response + response**2 / 2),
            targets=size * self.lengths.mean,
            scoring=scoring,
            scoring_passes=self.passes - 1,
            logits_twice=True,
            copied_keys=size * prompt if together > 1 else 0.0,
        )
