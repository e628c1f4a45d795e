"""Builds the engine that a recipe asks for: what generates, and what stands around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_resrl.config.schema import Recipe
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.engine import RolloutEngine
from megatron_resrl.rollout.engines.absent import AbsentEngine
from megatron_resrl.rollout.engines.megatron import MegatronEngine
from megatron_resrl.rollout.environments.chat import ObservationTokens
from megatron_resrl.rollout.environments.environment import Environment
from megatron_resrl.rollout.environments.episodes import EpisodeEngine, EpisodeSettings
from megatron_resrl.rollout.environments.opening import opening_encoder
from megatron_resrl.rollout.environments.processes import ProcessSeats
from megatron_resrl.rollout.environments.registry import get_environment
from megatron_resrl.rollout.environments.seats import LocalSeats, Seats


def make_engine(
    recipe: Recipe, policy: Policy, tokenizer: Any, *, trainable: bool
) -> RolloutEngine:
    """Makes, and for vLLM starts, the engine of `rollout.engine`; with an environment, episodes.

    Collective.

    Args:
        recipe: All settings.
        policy: Samples with its weights.
        tokenizer: The model's, for environments.
        trainable: For training, where `rollout.replay` takes the place of servers.

    Raises:
        InputError: The environment cannot be used, or not with this chat template.
        RunError: A vLLM server does not start.
    """
    settings = recipe.rollout
    if settings.environment is None:
        return _single_turn_engine(recipe, policy, trainable=trainable)
    make = get_environment(settings.environment, settings.environment_options, recipe.reward.code)
    observations = ObservationTokens(
        tokenizer,
        make().role,
        apply_chat_template=recipe.data.apply_chat_template,
        chat_template_kwargs=recipe.data.chat_template_kwargs,
    )
    return EpisodeEngine(
        _single_turn_engine(recipe, policy, trainable=trainable),
        _seats(recipe, make),
        tokenizer,
        observations,
        opening_encoder(tokenizer, recipe.data),
        EpisodeSettings(
            settings.environment,
            settings.max_turns,
            settings.environment_patience_s,
            settings.environment_failure,
        ),
    )


def _seats(recipe: Recipe, make: Callable[[], Environment]) -> Seats:
    settings, timeout_s = recipe.rollout, recipe.reward.timeout_s
    if not settings.environment_processes:
        return LocalSeats(make, timeout_s)
    return ProcessSeats(
        settings.environment or "",
        settings.environment_options,
        recipe.reward.code,
        count=settings.environment_processes,
        timeout_s=timeout_s,
    )


def _single_turn_engine(recipe: Recipe, policy: Policy, *, trainable: bool) -> RolloutEngine:
    if recipe.rollout.engine == "megatron":
        return MegatronEngine(policy, max_running_samples=recipe.rollout.max_running_samples)
    if trainable and recipe.rollout.replay:
        return AbsentEngine(recipe.rollout.replay)
    # Here, because the embedded engine needs neither.
    from megatron_resrl.rollout.engines.vllm import VllmEngine
    from megatron_resrl.rollout.serving.needed_model import NeededModel
    from megatron_resrl.rollout.weight_sync.backends import server_arguments
    from megatron_resrl.rollout.weight_sync.sender import build_sender

    rollout, vllm = recipe.rollout, recipe.vllm
    model = NeededModel.of(recipe.model, recipe.precision, recipe.data, rollout)
    return VllmEngine(
        model,
        vllm,
        build_sender(policy, model, vllm, rollout),
        colocated=rollout.placement == "colocated",
        output_dir=Path(recipe.output_dir),
        weight_flags=server_arguments(vllm, rollout.placement),
    )
