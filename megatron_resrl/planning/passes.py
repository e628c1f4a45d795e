"""How often a response with a loss goes forward through the policy in a step, and beside which."""

from __future__ import annotations

import math

from megatron_resrl.config.schema import Recipe
from megatron_resrl.config.shared_prompts import shared_prompts_conflict, sharing_of
from megatron_resrl.config.single_pass import single_pass_conflict
from megatron_resrl.token_weighting.registry import WeightingEntry


def forward_passes(recipe: Recipe, layers: int, tokens: float) -> int:
    """1: the update is the scoring pass, too; 2: a scoring pass comes before it.

    From the recipe alone, as far as it says: a dry run asks the token weighting itself
    (`training/single_pass.py: takes_single_pass`).

    Args:
        recipe: Without problems.
        layers: Of the model.
        tokens: Of a response with its prompt.
    """
    algorithm = recipe.algorithm
    conflict = single_pass_conflict(algorithm, recipe.correction, recipe.model, recipe.parallel)
    weighting = _weighting_entry(recipe)
    if algorithm.single_pass == "never" or conflict is not None or weighting.whole_groups:
        return 2
    stages = recipe.parallel.pipeline_model_parallel_size
    on_last_stage = recipe.resrl.layer % (layers + 1) >= layers - layers // stages
    if on_last_stage and _negatives_fit(recipe, tokens):
        return 1
    return 2 if weighting.reads_states else 1


def reference_passes(recipe: Recipe) -> int:
    """Further forward passes: of the weights that the run began with, and of a teacher's."""
    return int(recipe.algorithm.kl_coefficient > 0) + int(recipe.teacher.path is not None)


def responses_to_a_prompt(recipe: Recipe, *, by_correctness: bool) -> int:
    """Responses that share their prompt, where they fit into one micro-batch; 1: each has a copy.

    From the recipe alone, like `forward_passes`.

    Args:
        recipe: Without problems.
        by_correctness: Where weights come from hidden states, correct responses pass before the
            incorrect ones.
    """
    asked = sharing_of(recipe.algorithm, recipe.rollout).asked
    if asked == "never" or shared_prompts_conflict(recipe.model, recipe.precision) is not None:
        return 1
    group = recipe.rollout.group_size
    weighting = _weighting_entry(recipe)
    if by_correctness and weighting.reads_states and not weighting.whole_groups:
        return math.ceil(group / 2)
    return group


def _negatives_fit(recipe: Recipe, tokens: float) -> bool:
    """Whether a micro-batch has room for the incorrect responses of a group, half of it."""
    algorithm = recipe.algorithm
    negatives = math.ceil(recipe.rollout.group_size / 2)
    budget = algorithm.max_tokens_per_micro_batch
    in_budget = budget is None or negatives * math.ceil(tokens) <= budget
    return in_budget and negatives <= algorithm.micro_batch_size


def _weighting_entry(recipe: Recipe) -> WeightingEntry:
    from megatron_resrl.training.algorithm import weighting_of  # It imports torch.

    return weighting_of(recipe).entry
