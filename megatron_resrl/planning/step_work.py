"""What a step asks of one replica of the model, whatever the stage: micro-batches, all alike."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_resrl.config.schema import ParallelConfig


@dataclass(frozen=True)
class StepWork:
    """Of the data-parallel replica that has most."""

    replicas: int
    """Data-parallel copies of the model."""
    updates: int
    """Optimizer steps."""
    micro_batches: int
    """Of the whole step."""
    micro_batches_per_update: int
    tokens: float
    """Of a micro-batch, padding included."""
    row: float
    """Tokens of one of its sequences."""
    pairs: float
    """Of a token and one that it attends to, in a micro-batch."""
    targets: float
    """Tokens of a micro-batch whose next token is scored."""
    scoring: StepWork | None
    """Of a pass without gradient over all micro-batches before the updates; None: there is no
    such pass."""
    logits_twice: bool
    """Whether an update makes its logits again for the backward pass instead of keeping them."""
    scoring_passes: int = 1
    """How many of them, where there is one."""
    copied_keys: float = 0.0
    """Tokens of a micro-batch whose keys and values attention holds once more, because sequences
    share them."""


def replicas_of(parallel: ParallelConfig, world_size: int) -> int:
    """Data-parallel copies of the model, of a layout that divides the ranks."""
    model_ranks = (
        parallel.tensor_model_parallel_size
        * parallel.pipeline_model_parallel_size
        * parallel.context_parallel_size
    )
    return world_size // model_ranks
