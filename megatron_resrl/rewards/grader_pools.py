"""Graders of a run: one pool of processes for each function with its options."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from megatron_resrl.config.schema import RewardConfig
from megatron_resrl.rewards.combined import CombinedGrader
from megatron_resrl.rewards.grader import Grader
from megatron_resrl.rewards.parts import Part, parts_of
from megatron_resrl.rewards.registry import ASKS_SERVERS, load_reward
from megatron_resrl.rewards.served import ServedGrader, ServedReward


def _key(part: Part) -> str:
    """Equal for functions that one pool serves."""
    return json.dumps([part.name, part.options], sort_keys=True, default=repr)


def _made(part: Part, reward: RewardConfig, log: Path) -> Grader | ServedGrader:
    if part.name in ASKS_SERVERS:
        asked = cast(ServedReward, load_reward(part.name, part.options, None, part.places).function)
        return ServedGrader(asked, part.name, reward.timeout_s, part.places)
    return Grader(
        part.name,
        workers=reward.workers,
        timeout_s=reward.timeout_s,
        memory_gb=reward.memory_gb,
        log=log,
        options=dict(part.options),
        code=reward.code,
        places=part.places,
    )


class GraderPools(contextlib.ExitStack):
    """Pools that run while the block does.

    Args:
        rewards: Equal functions with equal options share a pool of `workers` processes.
        log: File that takes what the functions print.

    Raises:
        InputError: A function cannot be used.
    """

    def __init__(self, rewards: Iterable[RewardConfig], log: Path) -> None:
        super().__init__()
        self._graders: dict[str, Grader | ServedGrader] = {}
        for reward in rewards:
            for part in parts_of(reward):
                if _key(part) not in self._graders:
                    self._graders[_key(part)] = _made(part, reward, log)

    def __enter__(self) -> GraderPools:
        super().__enter__()
        for grader in self._graders.values():
            self.enter_context(grader)
        return self

    def of(self, reward: RewardConfig) -> Grader | ServedGrader | CombinedGrader:
        """What grades by a reward that this object was made with."""
        parts = self.parts_of(reward)
        return CombinedGrader(parts) if reward.functions else parts[0][1]

    def parts_of(self, reward: RewardConfig) -> list[tuple[Part, Grader | ServedGrader]]:
        """The functions of such a reward, each with its pool."""
        return [(part, self._graders[_key(part)]) for part in parts_of(reward)]
