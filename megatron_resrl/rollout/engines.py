"""The engine that a recipe asks for."""

from __future__ import annotations

from megatron_resrl.config.schema import Recipe
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.engine import RolloutEngine
from megatron_resrl.rollout.megatron_engine import MegatronEngine


def make_engine(recipe: Recipe, policy: Policy) -> RolloutEngine:
    """Makes, and for vLLM starts, the engine of `rollout.engine`. Collective.

    With `rollout.replay` nothing is started: the embedded engine is there for evaluations.

    Args:
        recipe: All settings.
        policy: Whose weights it samples with.

    Raises:
        RunError: A vLLM server does not start.
    """
    if recipe.rollout.engine == "megatron" or recipe.rollout.replay is not None:
        return MegatronEngine(policy, max_running_samples=recipe.rollout.max_running_samples)
    # Here, because the embedded engine needs neither.
    from megatron_resrl.rollout.vllm.engine import VllmEngine
    from megatron_resrl.rollout.weight_sync.backends import server_arguments
    from megatron_resrl.rollout.weight_sync.sender import WeightSender

    return VllmEngine(recipe, WeightSender(policy, recipe), weight_flags=server_arguments(recipe))
