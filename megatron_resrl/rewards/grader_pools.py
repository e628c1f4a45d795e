"""Graders of a run: one pool of processes for each reward function."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from megatron_resrl.config.schema import RewardConfig
from megatron_resrl.rewards.grader import Grader


def reward_key(reward: RewardConfig) -> str:
    """Equal for rewards that one pool serves."""
    return json.dumps([reward.function, reward.options], sort_keys=True, default=repr)


class GraderPools(contextlib.ExitStack):
    """Pools that run while the block does.

    Args:
        rewards: Equal functions with equal options share a pool of `workers` processes.
        log: File that takes what the functions print.
    """

    def __init__(self, rewards: Iterable[RewardConfig], log: Path) -> None:
        super().__init__()
        self._graders = {
            reward_key(reward): Grader(
                reward.function,
                workers=reward.workers,
                timeout_s=reward.timeout_s,
                memory_gb=reward.memory_gb,
                log=log,
                options=reward.options,
                code=reward.code,
            )
            for reward in {reward_key(each): each for each in rewards}.values()
        }

    def __enter__(self) -> GraderPools:
        super().__enter__()
        for grader in self._graders.values():
            self.enter_context(grader)
        return self

    def of(self, reward: RewardConfig) -> Grader:
        """The pool of a reward that this object was made with."""
        return self._graders[reward_key(reward)]
