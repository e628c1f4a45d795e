"""Micro-batches that a layout can take: their lengths, their number, and each rank's share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_resrl.platform.distributed import max_over_ranks
from megatron_resrl.policy.alignment import alignment
from megatron_resrl.policy.batches import MicroBatch, TokenBatch, make_micro_batches
from megatron_resrl.policy.experts import expert_sync_group


def length_multiple(config: TransformerConfig) -> int:
    """What the length of every padded sequence is a multiple of, in a model's layout."""
    return alignment(
        sequence_parallel_size=(
            config.tensor_model_parallel_size if config.sequence_parallel else 1
        ),
        context_parallel_size=config.context_parallel_size,
        fp8_recipe=config.fp8_recipe if config.fp8 else None,
    ).length


def lay_out(
    config: TransformerConfig,
    batch: TokenBatch,
    parts: Sequence[Sequence[int]],
    *,
    packed: bool,
    shared: bool = False,
) -> list[MicroBatch]:
    """Cuts this data-parallel rank's sequences into micro-batches for its layout.

    Collective over replicas that share their experts: all get as many micro-batches.

    Args:
        config: Of the model.
        batch: On the CPU; the same on all context-parallel ranks, which get their shares of it.
        parts: The rows of each micro-batch.
        packed: Put the sequences of a micro-batch behind each other.
        shared: Feed what sequences of a micro-batch share at their beginning once.

    Returns:
        On the CPU.
    """
    interleaved = config.virtual_pipeline_model_parallel_size is not None
    count = max(1, len(parts))
    together = expert_sync_group()
    if together is not None:
        count = max_over_ranks(count, together)
    stages = config.pipeline_model_parallel_size
    micro_batches = make_micro_batches(
        batch,
        parts,
        length_multiple=length_multiple(config),
        packed=packed,
        shared=shared,
        uniform=interleaved,
        count_multiple=math.ceil(count / stages) * stages if interleaved else count,
        context_parallel_rank=parallel_state.get_context_parallel_rank(),
        context_parallel_size=config.context_parallel_size,
    )
    if config.fp8:
        return micro_batches
    # Only FP8, whose scales are those of tokens, need know what is padding.
    return [dataclasses.replace(each, padding=None) for each in micro_batches]
