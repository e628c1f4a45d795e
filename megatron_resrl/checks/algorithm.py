"""The objective, its sampling distribution and its schedule."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_resrl.checks.facts import Check
from megatron_resrl.checks.parallel import TRAINING_BATCH_CHECKS
from megatron_resrl.config.problems import Problem, against_always
from megatron_resrl.config.schema import AlgorithmConfig, OptimizerConfig, Recipe, ResrlConfig
from megatron_resrl.config.shared_prompts import shared_prompts_conflict
from megatron_resrl.config.single_pass import single_pass_conflict
from megatron_resrl.errors import SettingError
from megatron_resrl.token_weighting.registry import chosen_weighting, require_weighting


def _check_algorithm(recipe: Recipe) -> Iterator[Problem]:
    # Here, because torch takes a second to import, which `--help` need not wait for.
    from megatron_resrl.training.algorithm import algorithm_of, unused_settings

    algorithm = recipe.algorithm
    try:
        made = algorithm_of(recipe)
    except SettingError as error:
        yield Problem.of(error)
        return
    except (ValueError, TypeError) as error:  # Names must be strings, values what they say.
        fix = "correct the option or leave it out"
        yield Problem("algorithm.options", algorithm.options, str(error), fix)
        return
    if made.corrects_mismatch and recipe.correction.method != "none":
        problem = f"{algorithm.name} has the ratio of trainer and engine in its loss already"
        yield Problem("correction.method", recipe.correction.method, problem, "use none")
    if made.kl is not None and made.kl.place == "reward" and not made.learns_from_rewards:
        problem = f"{algorithm.name} makes its advantages of scores, which have no penalty"
        yield Problem("algorithm.kl_in", "reward", problem, "use loss")
    for setting, option in unused_settings(recipe, type(made)).items():
        value = getattr(algorithm, setting.removeprefix("algorithm."))
        fix = f"set algorithm.options.{option} instead" if option else "leave it out"
        yield Problem(setting, value, f"{algorithm.name} does not use it", fix)


def _check_weighting(recipe: Recipe) -> Iterator[Problem]:
    from megatron_resrl.algorithms import get_algorithm_class  # It imports torch.

    algorithm, resrl = recipe.algorithm, recipe.resrl
    try:
        found = get_algorithm_class(algorithm.name)
    except SettingError:
        return  # `_check_algorithm` says so.
    try:
        # `resrl.weights`, too, where the algorithm has no use for it.
        require_weighting(chosen_weighting(algorithm, resrl, weighted=True))
    except SettingError as error:
        yield Problem.of(error)
        return
    if algorithm.weighting != "auto" and resrl.weights != ResrlConfig.weights:
        problem = f"algorithm.weighting, which is {algorithm.weighting!r}, decides"
        yield Problem("resrl.weights", resrl.weights, problem, "leave one of them out")
    chosen = chosen_weighting(algorithm, resrl, weighted=found.weighted)
    if chosen.entry.only_incorrect and not found.learns_from_incorrect:
        problem = f"it weighs incorrect responses, of which {algorithm.name} has no loss"
        yield Problem("algorithm.weighting", algorithm.weighting, problem, "use none")


def _check_mini_batches(algorithm: AlgorithmConfig) -> Iterator[Problem]:
    if algorithm.mini_batches == "balanced" and algorithm.updates_per_step == 1:
        problem = "algorithm.updates_per_step is 1: one mini-batch has all groups"
        fix = "leave it out, or set algorithm.updates_per_step above 1"
        yield Problem("algorithm.mini_batches", "balanced", problem, fix)


def _check_single_pass(recipe: Recipe) -> Iterator[Problem]:
    conflict = single_pass_conflict(
        recipe.algorithm, recipe.correction, recipe.model, recipe.parallel
    )
    yield from against_always("algorithm.single_pass", recipe.algorithm.single_pass, conflict)


def _check_shared_prompts(recipe: Recipe) -> Iterator[Problem]:
    conflict = shared_prompts_conflict(recipe.model, recipe.precision)
    yield from against_always("algorithm.shared_prompts", recipe.algorithm.shared_prompts, conflict)


def _check_token_budgets(recipe: Recipe) -> Iterator[Problem]:
    # The last token is predicted, never fed.
    longest = recipe.data.max_prompt_length + recipe.rollout.max_response_length - 1
    for name in ("max_tokens_per_micro_batch", "max_tokens_per_scoring_micro_batch"):
        budget = getattr(recipe.algorithm, name)
        if budget is not None and budget < longest:
            problem = (
                f"the longest prompt with its response is fed as {longest} tokens "
                "(data.max_prompt_length + rollout.max_response_length - 1)"
            )
            yield Problem(f"algorithm.{name}", budget, problem, f"use at least {longest}")


def _check_sampling(temperature: float) -> Iterator[Problem]:
    if temperature == 0:
        problem = "all greedy responses of a group are the same, so that their advantages are 0"
        yield Problem("rollout.temperature", 0.0, problem, "set it above 0, e.g. 1.0")


def _check_layer(layer: int, layers: int | None) -> Iterator[Problem]:
    if layers is None or -layers - 1 <= layer <= layers:
        return
    problem = f"the model has {layers} layers, whose hidden states are {-layers - 1} to {layers}"
    yield Problem("resrl.layer", layer, problem, "use e.g. -2, the input of the last layer")


def _check_schedule(optimizer: OptimizerConfig) -> Iterator[Problem]:
    if optimizer.min_lr > optimizer.lr:
        problem = f"larger than optimizer.lr, which is {optimizer.lr}"
        yield Problem("optimizer.min_lr", optimizer.min_lr, problem, f"use at most {optimizer.lr}")
    decay = optimizer.lr_decay_steps
    if decay is not None and decay <= optimizer.lr_warmup_steps:
        problem = f"not after the warm-up: optimizer.lr_warmup_steps is {optimizer.lr_warmup_steps}"
        yield Problem("optimizer.lr_decay_steps", decay, problem, "use more steps or null")


PASS_CHECKS: tuple[Check, ...] = (
    lambda facts: _check_single_pass(facts.recipe),
    lambda facts: _check_shared_prompts(facts.recipe),
    lambda facts: _check_token_budgets(facts.recipe),
)
"""Of passes and micro-batches."""

ALGORITHM_CHECKS: tuple[Check, ...] = (
    lambda facts: _check_algorithm(facts.recipe),
    lambda facts: _check_weighting(facts.recipe),
    lambda facts: _check_mini_batches(facts.recipe.algorithm),
    *PASS_CHECKS,
    lambda facts: _check_sampling(facts.recipe.rollout.temperature),
    lambda facts: _check_layer(facts.recipe.resrl.layer, facts.hf_config.get("num_hidden_layers")),
    lambda facts: _check_schedule(facts.recipe.optimizer),
    *TRAINING_BATCH_CHECKS,
)
