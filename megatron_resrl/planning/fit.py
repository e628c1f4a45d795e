"""Whether a job fits, and what to change where it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from megatron_resrl.config.schema import Recipe
from megatron_resrl.planning.generation import Server, ServerMemory
from megatron_resrl.planning.gpus import Gpu
from megatron_resrl.planning.records import PhaseRecord, RankRecord

MARGIN_SHARE = 0.10
"""Of the peak: fragmentation of the allocator."""

MARGIN_BYTES = 2 * 2**30
"""CUDA context (0.5 GiB), NCCL's buffers (0.5 to 1 GiB), workspaces of cuBLAS and cuDNN."""

ASLEEP_BYTES = 2 * 2**30
"""What a colocated vLLM server holds while it sleeps at level 2: context, NCCL and CUDA graphs."""


@dataclass(frozen=True)
class Verdict:
    """One phase of one rank, or one GPU of a server, against the GPU's memory."""

    what: str
    """Phase and role of the rank."""
    needed: int
    """Bytes, the margin included."""
    available: int

    @property
    def fits(self) -> bool:
        """Whether there is enough."""
        return self.needed <= self.available


def with_margin(peak: int) -> int:
    """Bytes that a peak takes on a GPU."""
    return int(peak * (1 + MARGIN_SHARE)) + MARGIN_BYTES


def trainer_verdicts(
    ranks: list[RankRecord], gpu: Gpu, *, asleep_engine: bool
) -> Iterator[Verdict]:
    """Each phase of each rank.

    Args:
        ranks: Of a dry run or of the formulas.
        gpu: Its memory.
        asleep_engine: Whether a vLLM server sleeps on the same GPU.
    """
    for rank in ranks:
        for phase in rank.phases:
            needed = with_margin(phase.peak_bytes) + ASLEEP_BYTES * asleep_engine
            yield Verdict(f"{phase.name}, {rank.role}", needed, gpu.memory)


def server_verdicts(
    server: Server,
    memory: ServerMemory,
    gpu: Gpu,
    *,
    per_response: int,
    resident: int,
) -> Iterator[Verdict]:
    """What vLLM asks of a GPU.

    Args:
        server: As the recipe starts it.
        memory: How it divides its share.
        gpu: Its memory.
        per_response: Bytes of keys and values of the longest response, its prompt included.
        resident: Bytes that the trainer holds on the same GPU while the server is awake; 0: the
            server has a GPU of its own.
    """
    needed = memory.weights + memory.activations + per_response
    yield Verdict("vLLM: weights, largest pass and one response", needed, memory.share)
    if resident:
        both = memory.share + with_margin(resident)
        yield Verdict("vLLM awake beside the trainer", both, gpu.memory)
    elif server.utilization > 1:
        yield Verdict("vLLM's share", memory.share, gpu.memory)


def largest_kind(phase: PhaseRecord) -> str:
    """What holds most at the peak."""
    kinds: Mapping[str, int] = phase.peak_by_kind
    return max(kinds, key=lambda kind: kinds[kind]) if kinds else "activations"


def advice(recipe: Recipe, worst: PhaseRecord, gpus_per_node: int) -> list[str]:
    """Settings to change so that the phase that needs most needs less, the cheapest first.

    Args:
        recipe: As it is now.
        worst: The phase that does not fit.
        gpus_per_node: Bounds tensor parallelism.
    """
    kind = largest_kind(worst)
    found = list(_against_activations(recipe)) if kind == "activations" else []
    if kind == "optimizer" and not recipe.parallel.use_distributed_optimizer:
        found.append("parallel.use_distributed_optimizer: true divides the optimizer's state")
    found += _against_weights(recipe, gpus_per_node)
    if kind != "activations":
        found += _against_activations(recipe)
    return found


def _against_activations(recipe: Recipe) -> Iterator[str]:
    model, parallel = recipe.model, recipe.parallel
    size = recipe.algorithm.micro_batch_size
    if size > 1:
        yield f"algorithm.micro_batch_size: {size // 2} halves the activations"
    if parallel.tensor_model_parallel_size > 1 and not parallel.sequence_parallel:
        yield "parallel.sequence_parallel: true divides the norms' activations, at no cost"
    if model.recompute_granularity != "full":
        yield (
            "model.recompute_granularity: full, model.recompute_method: uniform and "
            "model.recompute_num_layers: 1 keep only the layers' inputs, for a third more time"
        )
    if parallel.context_parallel_size == 1:
        yield "parallel.context_parallel_size: 2 halves the tokens of each rank"


def _against_weights(recipe: Recipe, gpus_per_node: int) -> Iterator[str]:
    parallel = recipe.parallel
    tensor, stages = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    if 2 * tensor <= gpus_per_node:
        yield f"parallel.tensor_model_parallel_size: {2 * tensor} halves the weights of a rank"
    yield f"parallel.pipeline_model_parallel_size: {2 * stages} halves the layers of a rank"


def cache_advice(max_running: int) -> str:
    """What to change where the embedded engine's cache does not fit."""
    fewer = max(1, max_running // 2)
    return f"rollout.max_running_samples: {fewer} halves the key-value cache, for longer decoding"


def server_advice(server: Server, failing: Verdict) -> list[str]:
    """What to change where vLLM's share does not fit."""
    if "beside" in failing.what:
        over = failing.needed - failing.available
        share = max(0.0, server.utilization - over / failing.available)
        return [
            f"vllm.arguments: {{gpu-memory-utilization: {share:.2f}}} leaves room for the trainer",
            "more pipeline or tensor ranks leave less of the trainer on each GPU",
        ]
    return [
        f"vllm.tensor_parallel_size: {2 * server.gpus} halves the weights on a GPU",
        f"a gpu-memory-utilization above {server.utilization} in vllm.arguments",
    ]
