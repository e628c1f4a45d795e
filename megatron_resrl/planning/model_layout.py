"""What the formulas need to know of a run: its model, its ranks and what is recomputed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_resrl.config.schema import ModelConfig, ParallelConfig
from megatron_resrl.policy.model_shape import ModelShape


@dataclass(frozen=True)
class Layout:
    """What the formulas need to know of a run."""

    model: ModelShape
    parallel: ParallelConfig
    recompute: str | None
    """`model.recompute_granularity`."""
    recompute_layers: int | None
    """Layers of a stage that are recomputed; None: all."""
    world_size: int
    item: int
    """Bytes of a weight."""
    dtype: str
    """Of the layers' matrix products."""
    plain_dtype: str
    """Of those of attention and output."""

    @classmethod
    def of(
        cls,
        model: ModelShape,
        settings: ModelConfig,
        parallel: ParallelConfig,
        params_dtype: str,
        fp8: bool,
        world_size: int,
    ) -> Layout:
        """The layout of a recipe."""
        block = settings.recompute_method == "block"
        fp32 = params_dtype == "fp32"
        plain = "float32" if fp32 else "bfloat16"
        return cls(
            model=model,
            parallel=parallel,
            recompute=settings.recompute_granularity,
            recompute_layers=settings.recompute_num_layers if block else None,
            world_size=world_size,
            item=4 if fp32 else 2,
            dtype="float8_e4m3fn" if fp8 else plain,
            plain_dtype=plain,
        )

    @property
    def tensor(self) -> int:
        """Tensor-parallel ranks, t."""
        return self.parallel.tensor_model_parallel_size

    @property
    def stages(self) -> int:
        """Pipeline stages, p."""
        return self.parallel.pipeline_model_parallel_size

    @property
    def chunks(self) -> int:
        """Virtual stages of a rank, v."""
        return self.parallel.virtual_pipeline_model_parallel_size or 1

    def scheduled(self, micro_batches: int) -> int:
        """Micro-batches that go through the pipeline; interleaved, a multiple of the stages."""
        multiple = self.stages if self.chunks > 1 else 1
        return math.ceil(micro_batches / multiple) * multiple

    @property
    def context(self) -> int:
        """Context-parallel ranks, c."""
        return self.parallel.context_parallel_size

    @property
    def optimizer_ranks(self) -> int:
        """Ranks that share the optimizer's state of one copy of weights."""
        if not self.parallel.use_distributed_optimizer:
            return 1
        return self.world_size // (self.tensor * self.stages)

    @property
    def expert_ranks(self) -> int:
        """Ranks that share the experts of a layer."""
        tensor = self.parallel.expert_tensor_parallel_size or self.tensor
        return tensor * self.parallel.expert_model_parallel_size

    @property
    def token_share(self) -> int:
        """Ranks that share the tokens between the regions of tensor parallelism."""
        return self.tensor if self.parallel.sequence_parallel else 1

    @property
    def layers(self) -> int:
        """Of the stage that has most."""
        return math.ceil(self.model.layers / self.stages)

    @property
    def recomputed(self) -> int:
        """Layers of a stage of which only the input is kept."""
        if self.recompute != "full":
            return 0
        return self.layers if self.recompute_layers is None else self.recompute_layers
