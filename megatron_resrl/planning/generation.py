"""vLLM's share of a GPU, and how long it generates; decoding steps of any engine.

Memory follows vLLM's own rule: it takes `gpu-memory-utilization` of the GPU, and what weights and
the largest forward pass leave of that becomes blocks of its key-value cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_resrl.config.schema import VllmConfig
from megatron_resrl.planning.gpus import Gpu
from megatron_resrl.planning.links import COLLECTIVE_S
from megatron_resrl.planning.step_shape import StepShape
from megatron_resrl.policy.model_shape import ModelShape

DEFAULT_UTILIZATION = 0.9
"""vLLM's `--gpu-memory-utilization`, where the recipe does not give one."""

DEFAULT_BATCHED_TOKENS = 8192
"""vLLM's `--max-num-batched-tokens` for a server on a large GPU: tokens of its largest pass."""

BLOCK_TOKENS = 16
"""Tokens of a block of the key-value cache."""

_GRAPH_BYTES = 2**30
"""CUDA graphs and the sampler's buffers, a round number from vLLM's start-up logs."""


@dataclass(frozen=True)
class Server:
    """One vLLM server as the recipe starts it."""

    gpus: int
    """Tensor-parallel size."""
    utilization: float
    max_running: int
    batched_tokens: int

    @classmethod
    def of(cls, vllm: VllmConfig) -> Server:
        """The servers of a recipe; they are alike."""
        arguments = {
            name.lstrip("-").replace("_", "-"): value for name, value in vllm.arguments.items()
        }
        return cls(
            vllm.tensor_parallel_size,
            float(arguments.get("gpu-memory-utilization", DEFAULT_UTILIZATION)),
            vllm.max_running_requests,
            int(arguments.get("max-num-batched-tokens", DEFAULT_BATCHED_TOKENS)),
        )


@dataclass(frozen=True)
class ServerMemory:
    """Bytes of one GPU of a server."""

    share: int
    """All that vLLM takes."""
    weights: int
    activations: int
    """Of its largest pass, with CUDA graphs."""

    @property
    def cache(self) -> int:
        """Left for keys and values; below 0: the server does not start."""
        return self.share - self.weights - self.activations


def server_memory(server: Server, model: ModelShape, gpu: Gpu) -> ServerMemory:
    """How a server divides a GPU.

    The largest pass holds, per token, input and output of the widest matrix of a layer; and logits
    in fp32 with their copy for every running response.
    """
    width = 2 * model.hidden + 3 * model.active_inner / server.gpus
    logits = 2 * 4 * server.max_running * model.vocabulary / server.gpus
    return ServerMemory(
        share=int(server.utilization * gpu.memory),
        weights=2 * model.parameters.total // server.gpus,
        activations=int(2 * width * server.batched_tokens + logits + _GRAPH_BYTES),
    )


def concurrent_responses(
    server: Server, memory: ServerMemory, model: ModelShape, tokens: float
) -> int:
    """Responses of `tokens` each, prompt included, that a server holds at once."""
    blocks = math.ceil(tokens / BLOCK_TOKENS)
    heads = min(server.gpus, model.key_heads)  # A key-value head is copied where there are fewer.
    per_response = blocks * BLOCK_TOKENS * model.cache_per_token / heads
    return min(server.max_running, int(memory.cache / per_response))


@dataclass(frozen=True)
class GenerationSeconds:
    """Of one step, on the slowest server."""

    prefill: float
    decode: float
    steps: float
    """Decoding steps."""
    running: int
    """Responses at once."""

    @property
    def total(self) -> float:
        """Both."""
        return self.prefill + self.decode


def generation_seconds(
    step: StepShape,
    servers: int,
    server: Server,
    model: ModelShape,
    gpu: Gpu,
    *,
    host_s: float = 0.0,
) -> GenerationSeconds | None:
    """How long vLLM generates the responses of a step.

    A server keeps `running` responses decoding while others wait, and then finishes those that run;
    by `Lengths`, their remaining lengths are distributed as all lengths are. A group's prompt is
    read once.

    Args:
        step: Responses and their lengths.
        servers: Their number; all are alike.
        server: One of them.
        model: What it reads for each token.
        gpu: Its rates.
        host_s: Seconds that the host adds to each decoding step.

    Returns:
        None: the cache does not hold one response of full length.
    """
    memory = server_memory(server, model, gpu)
    own = math.ceil(step.responses / servers)
    longest = step.prompt_tokens + step.lengths.limit
    if memory.cache <= 0 or concurrent_responses(server, memory, model, longest) < 1:
        return None
    mean_tokens = step.prompt_tokens + step.lengths.mean
    running = min(own, concurrent_responses(server, memory, model, mean_tokens))
    decoder = Decoder(model, server.gpus, gpu, host_s)
    full_steps = (own - running) * step.lengths.mean / running
    decode = full_steps * decoder.step_seconds(running, mean_tokens)
    tail_steps, tail = _tail(step, running, decoder)
    prompts = own / step.group_size * step.prompt_tokens
    rate = gpu.matrix_rate("bfloat16") * server.gpus
    prefill = 2 * model.active_parameters * prompts / rate
    return GenerationSeconds(prefill, decode + tail, full_steps + tail_steps, running)


def _tail(step: StepShape, running: int, decoder: Decoder) -> tuple[float, float]:
    """Steps and seconds until the last of `running` responses ends, on the slowest server."""
    end = step.lengths.longest_of(step.responses)
    parts = 64
    width = end / parts
    seconds = 0.0
    for number in range(parts):
        position = (number + 0.5) * width
        batch = max(1.0, running * step.lengths.still_running(position))
        seconds += width * decoder.step_seconds(batch, step.prompt_tokens + position)
    return end, seconds


@dataclass(frozen=True)
class Decoder:
    """Decoding steps; each reads all weights and the cache of all running responses."""

    model: ModelShape
    gpus: int
    """Tensor-parallel ranks."""
    gpu: Gpu
    host_s: float
    """Seconds that the host adds to each step."""

    def step_seconds(self, batch: float, context: float) -> float:
        """One token for each of `batch` responses with `context` tokens so far."""
        model, gpus = self.model, self.gpus
        weights = 2 * self._weights_read(batch) / gpus / self.gpu.memory_rate
        flops = 2 * model.active_parameters * batch / gpus
        cache = batch * context * model.cache_per_token / min(gpus, model.key_heads)
        products = max(weights, flops / self.gpu.matrix_rate("bfloat16"))
        device = products + cache / self.gpu.memory_rate + self._communication(batch)
        return device + self.host_s

    def _weights_read(self, batch: float) -> float:
        """Parameters; of experts, those that at least one of the tokens goes to (balanced)."""
        model = self.model
        parameters = model.parameters
        embedding = 0 if parameters.head == 0 else model.vocabulary * model.hidden
        dense = parameters.total - parameters.experts - embedding
        if not model.experts:
            return dense
        missed = (1 - model.experts_per_token / model.experts) ** batch
        return dense + parameters.experts * (1 - missed)

    def _communication(self, batch: float) -> float:
        """Two all-reduces of [batch, hidden] in 16 bits in each layer."""
        gpus = self.gpus
        if gpus == 1:
            return 0.0
        sent = 2 * (gpus - 1) / gpus * 2 * batch * self.model.hidden
        return 2 * self.model.layers * (COLLECTIVE_S + sent / self.gpu.nvlink_rate)


TRANSFER_RATE = 5e9
"""Bytes/s of weights, from the trainer's layout into servers. verl measured 28.5 to 29.1 s for the
145 GB of a 72B model on 8 nodes of H100 over NCCL, 14.2 s for 32B and 5.5 to 6.0 s for 7B, nearly
all of it the gathering and copying of buckets (verl-project/verl, pull request 7060)."""


def transfer_seconds(model: ModelShape) -> float:
    """How long new weights take to reach the servers, in 16 bits."""
    return 2 * model.parameters.total / TRANSFER_RATE
