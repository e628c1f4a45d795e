"""The weighting of a run, from the sections of its recipe."""

from __future__ import annotations

from megatron_resrl.config.schema import ResrlConfig
from megatron_resrl.config.schema_rollout import RolloutConfig
from megatron_resrl.policy.policy import Policy
from megatron_resrl.token_weighting.context import WeightingContext
from megatron_resrl.token_weighting.protocol import TokenWeighting
from megatron_resrl.token_weighting.registry import ChosenWeighting, get_weighting


def build_weighting(
    chosen: ChosenWeighting,
    policy: Policy,
    settings: ResrlConfig,
    rollout: RolloutConfig,
    *,
    seed: int,
    think_markers: tuple[int, int] | None = None,
) -> TokenWeighting:
    """Builds what weighs the tokens of a run.

    Args:
        chosen: Which one.
        policy: Whose hidden states are read.
        settings: Of ResRL's weights.
        rollout: Size of groups and longest response.
        seed: Of the run.
        think_markers: Token ids between which responses think, if thinking is masked.

    Raises:
        SettingError: There is no such weighting, or the class in the user's file is none.
    """
    # One incorrect response at least, or the group is skipped.
    longest = (rollout.group_size - 1) * rollout.max_response_length
    context = WeightingContext(
        policy,
        settings,
        seed,
        longest,
        think_markers,
        temperature=rollout.temperature,
        name=chosen.name,
        options=chosen.options,
    )
    return get_weighting(chosen, context)
