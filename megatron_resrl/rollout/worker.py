"""Everything that samples and grades: the policy, its engine, graders and tokenizer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_resrl.config.schema import Recipe, RewardConfig
from megatron_resrl.config.shared_prompts import Sharing, sharing_of
from megatron_resrl.data.prompts import Prompt
from megatron_resrl.data.tokenizer import load_tokenizer
from megatron_resrl.platform.ending import Deadline
from megatron_resrl.platform.phases import named_phase
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rewards.grader_pools import GraderPools
from megatron_resrl.rollout.engine import RolloutEngine
from megatron_resrl.rollout.engines.factory import make_engine
from megatron_resrl.rollout.ground_truths import require_ground_truths
from megatron_resrl.rollout.sampling import default_stop_tokens


@dataclass(frozen=True)
class RolloutWorker:
    """A policy with an engine that answers prompts, and graders that judge the answers."""

    policy: Policy
    engine: RolloutEngine
    """Answers prompts, in one turn or in several."""
    graders: GraderPools
    tokenizer: Any
    stop_token_ids: tuple[int, ...]
    model_path: str
    """Setting `model.path`, for messages."""


def build_policy(recipe: Recipe, *, trainable: bool = True) -> Policy:
    """The policy of a recipe of reinforcement learning, see `Policy.build`. Collective."""
    sharing = sharing_of(recipe.algorithm, recipe.rollout)
    if sharing.asked == "auto" and not trainable:
        sharing = Sharing("never")  # Nothing is scored.
    return Policy.build(
        recipe.model,
        recipe.parallel,
        recipe.precision,
        optimizer=recipe.optimizer if trainable else None,
        total_updates=recipe.steps * recipe.algorithm.updates_per_step,
        sequence_packing=recipe.algorithm.sequence_packing,
        sharing=sharing,
    )


@contextlib.contextmanager
def open_worker(
    recipe: Recipe,
    *,
    trainable: bool,
    tokenizer: Any | None = None,
    judged: Sequence[tuple[RewardConfig, Sequence[Prompt]]] = (),
) -> Iterator[RolloutWorker]:
    """Starts model, engine and grader processes; ends them with the block. Collective.

    What hangs in being closed does not keep the process alive, see `Deadline`.

    Args:
        recipe: Checked settings.
        trainable: With an optimizer.
        tokenizer: The model's, where it is loaded already.
        judged: Rewards, and the prompts whose responses each will judge; their ground truths are
            read before the model is loaded, see `require_ground_truths`. Empty: `recipe.reward`.
    """
    deadline = Deadline()
    with contextlib.ExitStack() as last:
        last.callback(deadline.cancel)
        tokenizer = tokenizer or load_tokenizer(recipe.model)
        rewards = [reward for reward, _ in judged] or [recipe.reward]
        with GraderPools(rewards, Path(recipe.output_dir) / "rewards.log") as graders:
            with named_phase("reading of ground truths"):
                for reward, prompts in judged:
                    require_ground_truths(
                        prompts, graders.parts_of(reward), environment=recipe.rollout.environment
                    )
            with named_phase("start of the model"):
                policy = build_policy(recipe, trainable=trainable)
            stop = recipe.rollout.stop_token_ids or default_stop_tokens(
                recipe.model.path, policy.hf_config, tokenizer
            )
            with named_phase("start of the rollout engine"):
                engine = make_engine(recipe, policy, tokenizer, trainable=trainable)
            try:
                with named_phase("run"):
                    yield RolloutWorker(policy, engine, graders, tokenizer, stop, recipe.model.path)
            finally:
                deadline.start(sys.exc_info()[1])
                engine.close()
