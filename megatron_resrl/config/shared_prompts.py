"""Which settings keep the responses of a group from sharing their prompt in the policy."""

from __future__ import annotations

from megatron_resrl.config.problems import Problem, first_problem
from megatron_resrl.config.schema import ModelConfig, PrecisionConfig


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
