"""Which settings keep sequences from sharing their prompt in the policy."""

from __future__ import annotations

from typing import NamedTuple

from megatron_resrl.config.problems import Problem, first_problem
from megatron_resrl.config.schema import (
    AlgorithmConfig,
    ModelConfig,
    PrecisionConfig,
    WhenExact,
)
from megatron_resrl.config.schema_rollout import RolloutConfig


class Sharing(NamedTuple):
    """Whether sequences are to share what they have in common at their beginning."""

    asked: WhenExact = "never"
    setting: str = "algorithm.shared_prompts"
    """That asks for it."""


def sharing_of(algorithm: AlgorithmConfig, rollout: RolloutConfig) -> Sharing:
    """What `algorithm.shared_prompts` asks for; `auto` is `never` where no micro-batch has two
    responses to a prompt."""
    together = min(rollout.group_size, algorithm.micro_batch_size)
    if algorithm.shared_prompts == "auto" and together == 1:
        return Sharing("never")
    return Sharing(algorithm.shared_prompts)


def shared_prompts_conflict(model: ModelConfig, precision: PrecisionConfig) -> Problem | None:
    """The first setting with which a shared prompt would change the result; None: none."""
    return first_problem(
        (
            model.hidden_dropout > 0,
            Problem(
                "model.hidden_dropout",
                model.hidden_dropout,
                "every response drops other outputs of its prompt",
                "use 0",
            ),
        ),
        (
            model.attention_dropout > 0,
            Problem(
                "model.attention_dropout",
                model.attention_dropout,
                "every response drops other attention weights of its prompt",
                "use 0",
            ),
        ),
        (
            precision.fp8 is not None,
            Problem(
                "precision.fp8",
                precision.fp8,
                "the sum of the gradients of all copies of a prompt is rounded to 8 bits where "
                "each was rounded for itself",
                "leave it out",
            ),
        ),
    )
