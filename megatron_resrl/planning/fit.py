"""Whether a job fits, and what to change where it does not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from megatron_resrl.config.schema import ParallelConfig, Recipe, RunSettings
from megatron_resrl.planning.generation import DEFAULT_UTILIZATION, Server, ServerMemory
from megatron_resrl.planning.gpus import Gpu
from megatron_resrl.planning.micro_batch import micro_batch_of
from megatron_resrl.planning.records import PhaseRecord, RankRecord

MARGIN_SHARE = 0.10
"""Of the peak: fragmentation of the allocator."""

MARGIN_BYTES = 2 * 2**30
"""CUDA context (0.5 GiB), NCCL's buffers (0.5 to 1 GiB), workspaces of cuBLAS and cuDNN."""

LARGEST_UTILIZATION = 0.97
"""Of a GPU, which vLLM can take beside the CUDA context."""

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


def advice(recipe: RunSettings, worst: PhaseRecord, over: int, gpus_per_node: int) -> list[str]:
    """Settings to change so that the phase that needs most needs less, the cheapest first, with
    what each takes off the peak where that follows from the peak.

    Args:
        recipe: As it is now.
        worst: The phase that does not fit.
        over: Bytes that it needs too much, the margin included.
        gpus_per_node: Bounds tensor parallelism.
    """
    kind, kinds = largest_kind(worst), worst.peak_by_kind
    activations = list(_against_activations(recipe, kinds.get("activations", 0), over))
    found = activations if kind in ("activations", "logits") else []
    if kind == "KV cache" and isinstance(recipe, Recipe):
        found.append(cache_advice(recipe, kinds[kind], over))
    if kind == "optimizer":
        found += _against_optimizer(recipe.parallel, kinds[kind])
    found += _against_weights(recipe, kinds, gpus_per_node)
    return list(dict.fromkeys(found + activations))


def _less(saved: float) -> str:
    """`: 3.2 GiB less`; nothing where it is too little to tell."""
    return f": {saved / 2**30:.1f} GiB less" if saved >= 0.05 * 2**30 else ""


def _against_activations(recipe: RunSettings, held: int, over: int) -> Iterator[str]:
    model, parallel, micro_batch = recipe.model, recipe.parallel, micro_batch_of(recipe)
    size = micro_batch.value
    if size > micro_batch.least:
        # They grow with the sequences of a micro-batch; the margin with them.
        share = 1 - over / (1 + MARGIN_SHARE) / held if held else 0.5
        fewer = max(micro_batch.least, min(size // 2, int(size * share)))
        what = "halves the activations" if 2 * fewer == size else f"makes them {fewer}/{size}"
        yield f"{micro_batch.setting}: {fewer} {what}{_less(held * (1 - fewer / size))}"
    if parallel.tensor_model_parallel_size > 1 and not parallel.sequence_parallel:
        yield "parallel.sequence_parallel: true divides the norms' activations, at no cost"
    if model.recompute_granularity != "full":
        yield (
            "model.recompute_granularity: full, model.recompute_method: uniform and "
            "model.recompute_num_layers: 1 keep only the layers' inputs, for a third more time"
        )
    if parallel.context_parallel_size == 1:
        yield f"parallel.context_parallel_size: 2 halves the tokens of each rank{_less(held / 2)}"


def _against_optimizer(parallel: ParallelConfig, held: int) -> Iterator[str]:
    if not parallel.use_distributed_optimizer:
        yield "parallel.use_distributed_optimizer: true divides the optimizer's state"
    else:
        yield f"twice the --nodes halve the optimizer's state of a rank{_less(held / 2)}"


def _against_weights(
    recipe: RunSettings, kinds: Mapping[str, int], gpus_per_node: int
) -> Iterator[str]:
    parallel = recipe.parallel
    tensor, stages = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    experts = parallel.expert_model_parallel_size
    # As many ranks share the optimizer's state as before.
    half = _less((kinds.get("weights", 0) + kinds.get("gradients", 0)) / 2)
    if experts > 1:
        yield f"parallel.expert_model_parallel_size: {2 * experts} halves the experts of a rank"
    if 2 * tensor <= gpus_per_node:
        size = 2 * tensor
        yield f"parallel.tensor_model_parallel_size: {size} halves the weights of a rank{half}"
    yield f"parallel.pipeline_model_parallel_size: {2 * stages} halves the layers of a rank{half}"


def cache_advice(recipe: Recipe, cache: int, over: int) -> str:
    """What to change where the embedded engine's cache does not fit.

    Args:
        recipe: As it is now.
        cache: Its bytes.
        over: Bytes that are missing, the margin included.
    """
    running, group = recipe.rollout.max_running_samples, recipe.rollout.group_size
    share = 1 - over / (1 + MARGIN_SHARE) / cache if cache else 0.5
    fewer = max(1, min(running // 2, int(running * share)))
    fewer = max(group, fewer // group * group) if running > group else fewer
    what = "halves the key-value cache" if 2 * fewer == running else "divides the key-value cache"
    saved = _less(cache * (1 - fewer / running))
    return f"rollout.max_running_samples: {fewer} {what}{saved}, for longer decoding"


def server_advice(server: Server, failing: Verdict, gpu: Gpu) -> list[str]:
    """What to change where vLLM's share does not fit.

    Args:
        server: As it is now.
        failing: The verdict on it.
        gpu: Its GPU.
    """
    if "beside" in failing.what:
        over = failing.needed - failing.available
        share = max(0.0, server.utilization - over / failing.available)
        return [
            f"vllm.arguments: {{gpu-memory-utilization: {share:.2f}}} leaves room for the trainer",
            "more pipeline or tensor ranks leave less of the trainer on each GPU",
        ]
    if failing.what == "vLLM's share":
        return [f"vllm.arguments: {{gpu-memory-utilization: {DEFAULT_UTILIZATION}}}, vLLM's own"]
    found = [f"vllm.tensor_parallel_size: {2 * server.gpus} halves the weights on a GPU"]
    share = math.ceil(100 * failing.needed / gpu.memory) / 100
    if share <= LARGEST_UTILIZATION:
        found.append(f"vllm.arguments: {{gpu-memory-utilization: {share:.2f}}} is just enough")
    return found
