"""Runs micro-batches through the pipeline: forward only, 1F1B, or interleaved 1F1B."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.utils import get_model_config

from megatron_resrl.platform.phases import detail
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.packing import PackedSequences

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
            padding=batch.padding,
            packed_seq_params=_packed_sequences(batch),
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
            **_communication(get_model_config(model_chunks[0]), micro_batches),
        )


class _KnownShapes(P2PCommunicator):
    """Sends states between pipeline stages without their shapes, which both stages know.

    megatron-core sends the shape before each tensor of variable length and waits for the device to
    read it. Both stages have the same micro-batches, and pass them in the same order.
    """

    def __init__(self, config: ModelParallelConfig, shapes: Sequence[tuple[int, int, int]]) -> None:
        super().__init__(parallel_state.get_pipeline_model_parallel_group(), config)
        self._forward, self._backward = iter(shapes), iter(shapes)

    def _communicate_shapes(
        self, tensor_send_next: Any, tensor_send_prev: Any, recv_prev: bool, recv_next: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (
            next(self._forward) if recv_prev else (),
            next(self._backward) if recv_next else (),
        )


def _communication(
    config: ModelParallelConfig, micro_batches: Sequence[MicroBatch]
) -> dict[str, Any]:
    """Arguments of megatron-core's schedule: who sends states of lengths that vary, among whom."""
    if config.pipeline_model_parallel_size == 1 or not config.variable_seq_lengths:
        return {}
    slices = config.tensor_model_parallel_size if config.sequence_parallel else 1
    shapes = [
        (batch.tokens.shape[1] // slices, len(batch.tokens), config.hidden_size)
        for batch in micro_batches
    ]
    groups = ["tp", "pp", "cp", "embd", "pos_embd", "dp_cp"]
    return {
        "p2p_communicator": _KnownShapes(config, shapes),
        "pg_collection": ProcessGroupCollection.use_mpu_process_groups(groups),
    }


def _announced(micro_batches: Sequence[MicroBatch]) -> Iterator[MicroBatch]:
    for number, batch in enumerate(micro_batches, start=1):
        detail(f"micro-batch {number} of {len(micro_batches)}")
        yield batch


def _packed_sequences(batch: MicroBatch) -> PackedSequences | None:
    """What layers are told of a packed micro-batch; None: it is not packed."""
    if batch.segments is None:
        return None
    return PackedSequences.of(
        batch.segments,
        batch.position_ids[0],
        parallel_state.get_context_parallel_rank(),
        parallel_state.get_context_parallel_world_size(),
    )


def is_last_stage() -> bool:
    """Whether this rank holds the last pipeline stage."""
    return parallel_state.is_pipeline_last_stage(ignore_virtual=True)
