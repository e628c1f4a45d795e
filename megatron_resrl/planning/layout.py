"""Which ranks of a job differ, and what sets them apart."""

from __future__ import annotations

from collections.abc import Sequence

from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron_resrl.config.schema import ParallelConfig


def distinct_ranks(
    parallel: ParallelConfig, world_size: int, *, subspace_stage: int | None = None
) -> tuple[int, ...]:
    """One rank of each kind: the first, a middle and the last pipeline stage.

    Replicas, context- and expert-parallel ranks do the same work on equal shares. Of the
    tensor-parallel ranks it is the last: under sequence parallelism it has the end of each
    response, where the first may have nothing but the prompt.

    Args:
        parallel: Layout; divides the number of ranks.
        world_size: Number of ranks.
        subspace_stage: Stage that holds `resrl.layer`, if it is to be among them; the last stage
            with the usual layers.

    Returns:
        Global ranks, ascending.
    """
    stages = parallel.pipeline_model_parallel_size
    chosen = {0, 1, stages - 1} | ({subspace_stage} if subspace_stage is not None else set())
    # megatron-core gives stages consecutive blocks of ranks.
    block, last = world_size // stages, parallel.tensor_model_parallel_size - 1
    return tuple(block * stage + last for stage in sorted(chosen) if stage < stages)


def role_of(stage: int, stages: int, *, owns_subspace: bool) -> str:
    """What sets a rank apart, in words.

    Args:
        stage: Its pipeline stage.
        stages: Their number.
        owns_subspace: Whether token weights are made on the stage.
    """
    if stages == 1:
        return "all stages"
    kind = {0: "first stage", stages - 1: "last stage"}.get(stage, "middle stage")
    return f"{kind}, owner of the subspace" if owns_subspace else kind


def layers_of_stages(config: TransformerConfig) -> list[list[int]]:
    """Numbers of the layers of each pipeline stage, counted from 1, as megatron-core shares them.

    Args:
        config: Of the whole model.
    """
    chunks: Sequence[int | None] = [None]
    if config.virtual_pipeline_model_parallel_size is not None:
        chunks = range(config.virtual_pipeline_model_parallel_size)
    stages = range(config.pipeline_model_parallel_size)
    if config.pipeline_model_parallel_layout is not None:
        return _layers_of_layout(config)
    found: list[list[int]] = []
    for stage in stages:
        own: list[int] = []
        for chunk in chunks:
            count = get_num_layers_to_build(config, chunk, stage)
            offset = get_transformer_layer_offset(config, chunk, stage)
            own += range(offset + 1, offset + count + 1)
        found.append(own)
    return found


def _layers_of_layout(config: TransformerConfig) -> list[list[int]]:
    """The same of a layout that a recipe writes out: chunk by chunk, stage by stage."""
    table = config.pipeline_model_parallel_layout.layout
    found: list[list[int]] = [[] for _ in table]
    number = 1
    for chunk in range(len(table[0])):
        for stage, chunks in enumerate(table):
            for kind in chunks[chunk]:
                if kind.name == "decoder":
                    found[stage].append(number)
                    number += 1
    return found
