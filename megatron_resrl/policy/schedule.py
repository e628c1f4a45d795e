"""Runs micro-batches through the pipeline: forward only, 1F1B, or interleaved 1F1B."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_resrl.platform.phases import detail
from megatron_resrl.policy.batches import MicroBatch

LastStage = Callable[[torch.Tensor, MicroBatch], tuple[torch.Tensor, Any]]
"""Takes the final hidden states [s, b, h] (or this rank's slice [s / TP, b, h] under sequence
parallelism) and the micro-batch; returns a scalar whose sum over micro-batches, data-parallel and
context-parallel ranks is the loss, and whatever the caller collects."""

AfterForward = Callable[[torch.nn.Module, MicroBatch], None]
"""Takes a model chunk and the micro-batch that has just gone forward through it."""


def run_pipeline(
    model_chunks: Sequence[torch.nn.Module],
    micro_batches: Sequence[MicroBatch],
    last_stage: LastStage,
    *,
    forward_only: bool,
    after_forward: AfterForward | None = None,
) -> list[Any]:
    """Runs `micro_batches` through megatron-core's schedule for this layout.

    Args:
        model_chunks: This rank's chunks (one, or one per virtual stage), wrapped or bare.
        micro_batches: The same on all tensor- and pipeline-parallel ranks of a replica.
        last_stage: Called on the last pipeline stage only.
        forward_only: Skip the backward pass; gradients are then off.
        after_forward: Called on every stage, for each chunk in the order of `micro_batches`.

    Returns:
        What `last_stage` collected, in the order of `micro_batches`; empty on other stages.
    """

    def forward_step(batches: Any, model: torch.nn.Module) -> tuple[torch.Tensor, Any]:
        batch = next(batches)
        output = model(
            input_ids=batch.tokens,
            position_ids=batch.position_ids,
            attention_mask=None,
            packed_seq_params=_packed_seq_params(batch),
        )
        if after_forward is not None:
            after_forward(model, batch)
        return output, functools.partial(collect, batch)

    def collect(batch: MicroBatch, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
        loss, collected = last_stage(hidden, batch)
        # The denominators are in the loss already; megatron-core's token count goes unused.
        return loss, torch.zeros((), dtype=torch.int, device=loss.device), collected

    rows, length = micro_batches[0].tokens.shape
    # megatron-core counts whole sequences.
    length *= parallel_state.get_context_parallel_world_size()
    iterators = [_announced(micro_batches) for _ in model_chunks]
    single = len(model_chunks) == 1
    with torch.set_grad_enabled(not forward_only):
        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iterators[0] if single else iterators,
            model=model_chunks[0] if single else list(model_chunks),
            num_microbatches=len(micro_batches),
            seq_length=length,
            micro_batch_size=rows,
            forward_only=forward_only,
        )


def _announced(micro_batches: Sequence[MicroBatch]) -> Iterator[MicroBatch]:
    for number, batch in enumerate(micro_batches, start=1):
        detail(f"micro-batch {number} of {len(micro_batches)}")
        yield batch


def _packed_seq_params(batch: MicroBatch) -> PackedSeqParams | None:
    """Where packed sequences begin and end; padding counts as part of its sequence."""
    if batch.packed_lengths is None:
        return None
    ends = torch.tensor([0, *itertools.accumulate(batch.packed_lengths)], dtype=torch.int32)
    ends = ends.to(batch.tokens.device, non_blocking=True)
    longest = max(batch.packed_lengths)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=ends,
        cu_seqlens_kv=ends,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


def is_last_stage() -> bool:
    """Whether this rank holds the last pipeline stage."""
    return parallel_state.is_pipeline_last_stage(ignore_virtual=True)
