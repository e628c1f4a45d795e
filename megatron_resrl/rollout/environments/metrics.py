"""Numbers of the episodes of a step, from the masks of their responses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import get_args

from megatron_resrl.rollout.engine import Response
from megatron_resrl.rollout.environments.running import Reason


def episode_metrics(responses: Sequence[Response]) -> dict[str, float]:
    """Counts turns and observations.

    Args:
        responses: All of a step; at least one.

    Returns:
        `episode/turns_mean` and `episode/turns_max`, turns of the policy;
        `episode/observations_mean`, what the environment said that was shown, e.g. tool results;
        `episode/observation_tokens_mean`, the tokens of all that, with the chat template's, which
        are no part of `response/length_mean`;
        `episode/failed`, the share whose environment failed, and `episode/failed_<reason>`, the
        share of each reason.
    """
    turns, observations, tokens = [], [], []
    for response in responses:
        mask = response.response_mask or (True,) * len(response.token_ids)
        runs = [drawn for drawn, _ in groupby(mask)]
        turns.append(sum(runs))
        observations.append(len(runs) - sum(runs))
        tokens.append(len(mask) - sum(mask))
    count = len(responses)
    reasons = [response.failure for response in responses if response.failure is not None]
    failed = {f"episode/failed_{each}": reasons.count(each) / count for each in get_args(Reason)}
    return {
        "episode/failed": len(reasons) / count,
        **failed,
        "episode/turns_mean": sum(turns) / count,
        "episode/turns_max": float(max(turns)),
        "episode/observations_mean": sum(observations) / count,
        "episode/observation_tokens_mean": sum(tokens) / count,
    }
