"""The engine that a recipe asks for."""

from __future__ import annotations

from megatron_resrl.config.schema import Recipe
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.engine import RolloutEngine
from megatron_resrl.rollout.engines.megatron import MegatronEngine
from megatron_resrl.rollout.engines.replay import NoEngine


def make_engine(recipe: Recipe, policy: Policy, *, trainable: bool) -> RolloutEngine:
    """Makes, and for vLLM starts, the engine of `rollout.engine`. Collective.

    Args:
        recipe: All settings.
        policy: Whose weights it samples with.
        trainable: For training, where `rollout.replay` takes the place of servers.

    Raises:
        RunError: A vLLM server does not start.
    """
    if recipe.rollout.engine == "megatron":
        return MegatronEngine(policy, max_running_samples=recipe.rollout.max_running_samples)
    if trainable and recipe.rollout.replay:
        return NoEngine(recipe.rollout.replay)
    # Here, because the embedded engine needs neither.
    from megatron_resrl.rollout.engines.vllm import VllmEngine
    from megatron_resrl.rollout.weight_sync.backends import server_arguments
    from megatron_resrl.rollout.weight_sync.sender import WeightSender

    return VllmEngine(recipe, WeightSender(policy, recipe), weight_flags=server_arguments(recipe))
