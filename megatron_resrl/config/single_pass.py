"""Which settings need a scoring pass before the updates of a step."""

from __future__ import annotations

from megatron_resrl.config.problems import Problem, first_problem
from megatron_resrl.config.schema import (
    AlgorithmConfig,
    ModelConfig,
    ParallelConfig,
)
from megatron_resrl.config.schema_rollout import CorrectionConfig


def single_pass_conflict(
    algorithm: AlgorithmConfig,
    correction: CorrectionConfig,
    model: ModelConfig,
    parallel: ParallelConfig,
) -> Problem | None:
    """The first setting because of which an update cannot be its own scoring pass; None: none."""
    stages = parallel.virtual_pipeline_model_parallel_size
    return first_problem(
        (
            algorithm.updates_per_step > 1,
            Problem(
                "algorithm.updates_per_step",
                algorithm.updates_per_step,
                "later updates of a step begin with other weights than the first",
                "use 1",
            ),
        ),
        (
            correction.method == "sequence_tis",
            Problem(
                "correction.method",
                correction.method,
                "the factors need the log-probs of whole responses before the update",
                "use token_tis, icepop or none",
            ),
        ),
        (
            stages is not None,
            Problem(
                "parallel.virtual_pipeline_model_parallel_size",
                stages,
                "interleaved stages do not pass micro-batches one by one",
                "leave it out",
            ),
        ),
        (
            model.hidden_dropout > 0,
            Problem(
                "model.hidden_dropout",
                model.hidden_dropout,
                "updates drop outputs and scoring passes do not",
                "use 0",
            ),
        ),
        (
            model.attention_dropout > 0,
            Problem(
                "model.attention_dropout",
                model.attention_dropout,
                "updates drop attention weights and scoring passes do not",
                "use 0",
            ),
        ),
    )
