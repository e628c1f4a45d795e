"""The KL penalty as a part of the rewards (`algorithm.kl_in: reward`).

Shapes: S responses of the step, B of them of this replica, T tokens of the longest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_resrl.algorithms import KlPenalty
from megatron_resrl.algorithms.kl_penalty import estimated_kl
from megatron_resrl.diagnostics.replicas import gather_from_replicas, speaks_for_replica
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.batch import RolloutBatch
from megatron_resrl.training.other_models import OtherModel
from megatron_resrl.training.scoring import PassSettings
from megatron_resrl.training.sharing import sequence_cost, shard_groups


@dataclass(frozen=True)
class RewardPenalties:
    """Of a step's responses; the same on all ranks."""

    of_responses: Tensor
    """[S] float64 on the CPU: what each reward loses."""
    metrics: dict[str, float]


def reward_penalties(
    penalty: KlPenalty,
    batch: RolloutBatch,
    policy: Policy,
    reference: OtherModel,
    settings: PassSettings,
    timers: PhaseTimers,
) -> RewardPenalties:
    """Scores all responses of the step under the reference. Collective.

    Before anything else is known of them: rewards make advantages, and advantages may decide which
    replica gets which response. The policy's log-probabilities are the engine's, as when each token
    was drawn.

    Args:
        penalty: Of the run.
        batch: Of the step.
        policy: Whose layout shares the responses.
        reference: Scores them.
        settings: Of its pass.
        timers: Of the step.
    """
    lengths = settings.limit(policy).lengths_of(batch)
    rows = shard_groups(batch, [list(range(len(batch)))], sequence_cost(policy), lengths).rows
    local = batch.select(rows)
    reference_BT = reference.log_probs(local, settings, timers).cpu()
    own = None
    if speaks_for_replica():
        drawn_BT, mask_BT = local.rollout_log_probs, local.loss_mask
        lost_B = penalty.of_responses(drawn_BT, reference_BT, mask_BT)
        kl = estimated_kl((drawn_BT - reference_BT)[mask_BT], "k3")
        own = (rows, lost_B, float(kl.sum()))
    penalties_S, total = torch.zeros(len(batch), dtype=torch.float64), 0.0
    for places, lost_B, kl_sum in gather_from_replicas(own):
        penalties_S[places] = lost_B
        total += kl_sum
    return RewardPenalties(
        penalties_S,
        {
            "reference/kl": total / int(batch.loss_mask.sum()),
            "reference/reward_penalty": float(penalties_S.mean()),
        },
    )
