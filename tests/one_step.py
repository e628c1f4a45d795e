"""A step, or a scoring pass, of the product on given samples and a whole recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_resrl.algorithms import Algorithm
from megatron_resrl.config.schema import (
    AlgorithmConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    Recipe,
    ResrlConfig,
)
from megatron_resrl.diagnostics.standard import standard_observers
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.batch import RolloutBatch, TrainingBatch
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.token_weighting.factory import build_weighting
from megatron_resrl.token_weighting.protocol import TokenWeighting, TokenWeights
from megatron_resrl.training.algorithm import algorithm_of
from megatron_resrl.training.algorithm import weighting_of as chosen_weighting_of
from megatron_resrl.training.other_models import OtherModels
from megatron_resrl.training.rl_step import StepOutcome, StepSettings, rl_step
from megatron_resrl.training.scoring import Scores, score_batch
from megatron_resrl.training.single_pass import takes_single_pass

OF_THE_LAYOUT = (
    *("resrl/peak_bytes", "resrl/sent_bytes", "resrl/method_is_gram"),
    *("step/padding", "step/imbalance", "step/shared_prompt_tokens"),
)
"""Metrics of a step that say how it was computed, and differ between layouts that agree."""


def step_recipe(model: Path, **resrl: Any) -> Recipe:
    """Micro-batches of three, six directions, and a learning rate that shows after one step."""
    return Recipe(
        model=ModelConfig(path=str(model)),
        precision=PrecisionConfig("fp32"),
        optimizer=OptimizerConfig(lr=1e-2, lr_warmup_steps=0),
        algorithm=AlgorithmConfig(micro_batch_size=3),
        resrl=ResrlConfig(rank=6, **resrl),
    )


def weighting_of(
    policy: Policy,
    recipe: Recipe,
    think_markers: tuple[int, int] | None = None,
) -> TokenWeighting:
    """The weighting of a recipe."""
    return build_weighting(
        chosen_weighting_of(recipe),
        policy,
        recipe.resrl,
        recipe.rollout,
        seed=recipe.seed,
        think_markers=think_markers,
    )


def take_step(
    policy: Policy,
    recipe: Recipe,
    samples: Sequence[Sample],
    step: int = 1,
    *,
    think_markers: tuple[int, int] | None = None,
    algorithm: Algorithm | None = None,
    timers: PhaseTimers | None = None,
    others: OtherModels | None = None,
) -> StepOutcome:
    """One `rl_step` as a run of the recipe takes it."""
    return take_step_on(
        policy,
        recipe,
        RolloutBatch.from_samples(samples),
        step,
        think_markers=think_markers,
        algorithm=algorithm,
        timers=timers,
        others=others,
    )


def take_step_on(
    policy: Policy,
    recipe: Recipe,
    batch: RolloutBatch,
    step: int = 1,
    *,
    think_markers: tuple[int, int] | None = None,
    algorithm: Algorithm | None = None,
    timers: PhaseTimers | None = None,
    others: OtherModels | None = None,
) -> StepOutcome:
    """`take_step` on tensors."""
    algorithm, timers = algorithm or algorithm_of(recipe), timers or PhaseTimers()
    observers = standard_observers(
        recipe.resrl, temperature=recipe.rollout.temperature, seed=recipe.seed, timers=timers
    )
    weighting = weighting_of(policy, recipe, think_markers)
    single = takes_single_pass(weighting, recipe)
    return rl_step(
        policy,
        algorithm,
        weighting,
        batch,
        StepSettings.from_recipe(recipe, single_pass=single),
        step,
        timers,
        observers,
        others,
    )


def training_batch(samples: Sequence[Sample], positive: torch.Tensor) -> TrainingBatch:
    """The samples, all with the same part in the loss."""
    ones = torch.ones(len(samples), dtype=torch.float64)
    return TrainingBatch(
        **vars(RolloutBatch.from_samples(samples)),
        advantages=ones,
        positive=positive,
        has_loss=ones.bool(),
        coefficients=ones,
    )


def score(policy: Policy, recipe: Recipe, batch: RolloutBatch) -> Scores:
    """A scoring pass without a weighting."""
    settings = StepSettings.from_recipe(recipe).passes
    return score_batch(policy, batch, settings, PhaseTimers())


def weigh(
    policy: Policy, recipe: Recipe, batch: TrainingBatch, weighting: TokenWeighting, step: int = 1
) -> TokenWeights:
    """The weights that a scoring pass gives."""
    weighting_pass = weighting.begin(batch, step)
    settings = StepSettings.from_recipe(recipe).passes
    score_batch(policy, batch, settings, PhaseTimers(), weighting=weighting_pass)
    return weighting_pass.finish()
