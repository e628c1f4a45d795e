"""The weighting of a run, from the sections of its recipe."""

from __future__ import annotations

from megatron_resrl.algorithms import Algorithm
from megatron_resrl.config.schema import ResrlConfig
from megatron_resrl.config.schema_rollout import RolloutConfig
from megatron_resrl.policy.policy import Policy
from megatron_resrl.token_weighting.context import WeightingContext
from megatron_resrl.token_weighting.protocol import TokenWeighting
from megatron_resrl.token_weighting.registry import get_weighting
from megatron_resrl.token_weighting.uniform import Uniform


def build_weighting(
    algorithm: Algorithm,
    policy: Policy,
    settings: ResrlConfig,
    rollout: RolloutConfig,
    *,
    seed: int,
    think_markers: tuple[int, int] | None = None,
) -> TokenWeighting:
    """Builds what weighs the tokens of a run's scoring passes.

    Args:
        algorithm: Without use for weights: `Uniform`.
        policy: Whose hidden states are read.
        settings: `resrl.weights` names the weighting.
        rollout: Size of groups and longest response.
        seed: Of the run.
        think_markers: Token ids between which responses think, if thinking is masked.

    Raises:
        SettingError: There is no such weighting, or the class in the user's file is none.
    """
    if not algorithm.needs_hidden_states:
        return Uniform()
    # One incorrect response at least, or the group is skipped.
    longest = (rollout.group_size - 1) * rollout.max_response_length
    return get_weighting(WeightingContext(policy, settings, seed, longest, think_markers))
