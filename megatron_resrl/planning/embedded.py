"""How long the embedded engine decodes, and what its key-value cache takes.

Replicas, and the context-parallel ranks of each, share the prompts; a replica decodes batch after
batch, each until its longest response ends, and drops finished rows when they are half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.planning.generation import Decoder, GenerationSeconds
from megatron_resrl.planning.gpus import Gpu
from megatron_resrl.planning.seconds import KERNELS_PER_LAYER, LAUNCH_S
from megatron_resrl.planning.step_shape import StepShape
from megatron_resrl.policy.model_shape import ModelShape


@dataclass(frozen=True)
class EmbeddedEngine:
    """The policy as its own engine."""

    model: ModelShape
    parallel: ParallelConfig
    max_running: int
    """`rollout.max_running_samples`."""

    def rows(self, step: StepShape) -> int:
        """Responses that a replica decodes at once; whole groups."""
        groups = max(1, self.max_running // step.group_size)
        return min(groups * step.group_size, self._own(step))

    def cache_bytes(self, step: StepShape) -> int:
        """Keys and values of a rank, of rows as long as the recipe allows."""
        parallel = self.parallel
        heads = min(parallel.tensor_model_parallel_size, self.model.key_heads)
        tokens = step.prompt_tokens + step.lengths.limit
        per_stage = self.model.cache_per_token / parallel.pipeline_model_parallel_size
        return math.ceil(self.rows(step) * tokens * per_stage / heads)

    def seconds(self, step: StepShape, gpu: Gpu) -> GenerationSeconds:
        """Of a step. Stages decode one after the other, and the host launches every kernel."""
        tensor = self.parallel.tensor_model_parallel_size
        rows, own = self.rows(step), self._own(step)
        batches = math.ceil(own / rows)
        launches = self.model.layers * KERNELS_PER_LAYER * LAUNCH_S
        decoder = Decoder(self.model, tensor, gpu, 0.0)
        end = step.lengths.longest_of(rows)
        parts = 64
        width = end / parts
        decode = 0.0
        for number in range(parts):
            position = (number + 0.5) * width
            # Between two halvings of the batch there are 3/4 of its rows on average.
            running = rows * step.lengths.still_running(position)
            batch = min(rows, max(1.0, 4 / 3 * running))
            context = step.prompt_tokens + position
            decode += width * max(launches, decoder.step_seconds(batch, context))
        prompts = own / step.group_size * step.prompt_tokens
        rate = gpu.matrix_rate("bfloat16") * tensor
        prefill = 2 * self.model.active_parameters * prompts / rate
        return GenerationSeconds(prefill, batches * decode, batches * end, rows)

    def _own(self, step: StepShape) -> int:
        """Responses of the decoder that has most."""
        decoders = step.replicas * self.parallel.context_parallel_size
        return math.ceil(step.prompts / decoders) * step.group_size
