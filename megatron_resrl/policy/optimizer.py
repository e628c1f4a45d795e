"""Gradient buffers, Adam and the learning-rate schedule: megatron-core's, from the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_resrl.config.schema import OptimizerConfig, ParallelConfig
from megatron_resrl.platform.distributed import any_rank
from megatron_resrl.platform.meetings import meeting
from megatron_resrl.policy.batches import MicroBatch
from megatron_resrl.policy.gpt import PolicyModel
from megatron_resrl.policy.results import BeforeStep, UpdateResult
from megatron_resrl.policy.schedule import AfterForward, LastStage, run_pipeline


@dataclass(frozen=True)
class Training:
    """What a policy that is trained has beside its weights."""

    chunks: list[DistributedDataParallel]
    """This rank's model chunks with their gradient buffers."""
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    """The learning rate by optimizer steps."""

    @classmethod
    def of(
        cls,
        modules: Sequence[PolicyModel],
        settings: OptimizerConfig,
        parallel: ParallelConfig,
        total_steps: int,
    ) -> Training:
        """Makes gradient buffers, optimizer and schedule for a loaded model. Collective.

        Args:
            modules: This rank's bare model chunks.
            settings: The recipe's section.
            parallel: The recipe's layout.
            total_steps: Optimizer steps of the whole run, the default length of the decay.
        """
        chunks = wrap_in_ddp(modules, parallel)
        optimizer, scheduler = make_optimizer(chunks, settings, parallel, total_steps)
        finish_parameter_gather(chunks)
        return cls(chunks, optimizer, scheduler)

    def step(
        self,
        micro_batches: Sequence[MicroBatch],
        last_stage: LastStage,
        after_forward: AfterForward | None,
        before_step: BeforeStep | None,
    ) -> UpdateResult:
        """Forward and backward passes, and one optimizer step. Collective.

        Args:
            micro_batches: Of this replica.
            last_stage: Makes the loss of each.
            after_forward: See `run_pipeline`.
            before_step: See `Policy.update`.

        Returns:
            The outcome; weights are untouched if a gradient was not finite on any rank.
        """
        chunks, optimizer = self.chunks, self.optimizer
        zero_gradients(chunks, optimizer)
        collected = run_pipeline(
            chunks, micro_batches, last_stage, forward_only=False, after_forward=after_forward
        )
        if before_step is not None:
            before_step(collected)
        self.scheduler.step(increment=1)
        learning_rate = optimizer.param_groups[0]["lr"]
        if not gradients_are_finite(chunks):
            finish_parameter_gather(chunks)
            return UpdateResult(False, float("nan"), learning_rate, collected)
        applied, grad_norm, _ = optimizer.step()
        finish_parameter_gather(chunks)
        return UpdateResult(bool(applied), float(grad_norm), learning_rate, collected)


def wrap_in_ddp(
    modules: Sequence[PolicyModel], parallel: ParallelConfig
) -> list[DistributedDataParallel]:
    """Gives each chunk fp32 gradient buffers that are summed over data-parallel ranks."""
    fields: dict[str, Any] = {
        "grad_reduce_in_fp32": True,
        "use_distributed_optimizer": parallel.use_distributed_optimizer,
    }
    ddp_config = DistributedDataParallelConfig(**(fields | parallel.ddp))
    chunks = [
        DistributedDataParallel(config=module.config, ddp_config=ddp_config, module=module)
        for module in modules
    ]
    for module in modules:
        _add_gradients_in_products(module)
    return chunks


def _add_gradients_in_products(module: PolicyModel) -> None:
    """Has Transformer Engine's matrix products add weight gradients to the fp32 buffers.

    Otherwise a gradient is rounded to the weights' type and added by a second kernel. The setting
    of megatron-core's that does this from the start would ask for Apex in the output layer.
    """
    for part in module.modules():
        if hasattr(part, "fuse_wgrad_accumulation"):
            part.fuse_wgrad_accumulation = True


def make_optimizer(
    chunks: list[DistributedDataParallel],
    settings: OptimizerConfig,
    parallel: ParallelConfig,
    total_steps: int,
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """Builds the optimizer and its schedule, and tells the model how gradients are finished.

    Args:
        chunks: This rank's wrapped model chunks.
        settings: The recipe's section.
        parallel: The recipe's layout.
        total_steps: Optimizer steps of the whole run, the default length of the decay.
    """
    config = chunks[0].module.config
    fields: dict[str, Any] = {
        "optimizer": "adam",
        "lr": settings.lr,
        "min_lr": settings.min_lr,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.adam_beta1,
        "adam_beta2": settings.adam_beta2,
        "adam_eps": settings.adam_eps,
        "clip_grad": settings.clip_grad,
        "bf16": config.bf16,
        "params_dtype": config.params_dtype,
        # Says which gradients a precision-aware optimizer reads.
        "fp8_recipe": config.fp8_recipe if config.fp8 else None,
        "use_distributed_optimizer": parallel.use_distributed_optimizer,
    }
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(**(fields | settings.megatron)), chunks
    )
    _update_in_one_kernel(optimizer)

    def finish_gradients(models: Any, num_tokens: Any = None, **kwargs: Any) -> None:
        with meeting():  # Replicas come here when each has its own gradients.
            finalize_model_grads(models, None, **kwargs)

    config.finalize_model_grads_func = finish_gradients
    if chunks[0].ddp_config.overlap_grad_reduce:
        # Only the last micro-batch of a step may start the reduction.
        no_sync = [chunk.no_sync for chunk in chunks]
        config.no_sync_func = no_sync if len(chunks) > 1 else no_sync[0]
    config.grad_scale_func = optimizer.scale_loss
    return optimizer, learning_rate_schedule(optimizer, settings, total_steps)


def _update_in_one_kernel(optimizer: MegatronOptimizer) -> None:
    """Has torch's Adam on a CPU read and write each element once, as the Adams for GPUs do.

    On a GPU, which has Transformer Engine's or Apex's, its count of steps would be on the device,
    and every save would wait for it.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(part.optimizer, torch.optim.Adam):
            for group in part.param_groups:
                if all(each.device.type == "cpu" for each in group["params"]):
                    group["fused"] = True


def learning_rate_schedule(
    optimizer: Any, settings: OptimizerConfig, total_steps: int
) -> OptimizerParamScheduler:
    """The learning rate by optimizer steps, megatron-core's.

    Args:
        optimizer: Whose `param_groups` get it.
        settings: The recipe's section.
        total_steps: Optimizer steps of the whole run, the default length of the decay.
    """
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=settings.lr_warmup_steps,
        lr_decay_steps=max(settings.lr_decay_steps or total_steps, settings.lr_warmup_steps + 1),
        lr_decay_style=settings.lr_decay_style,
        wsd_decay_steps=settings.lr_wsd_decay_steps,
        lr_wsd_decay_style=settings.lr_wsd_decay_style,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )


def zero_gradients(chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer) -> None:
    """Clears gradient buffers before a step."""
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()


def finish_parameter_gather(chunks: Sequence[DistributedDataParallel]) -> None:
    """Gathers all parameters now where `parallel.ddp.overlap_param_gather` is set. Collective.

    megatron-core gathers them lazily, in hooks of the next forward pass, at the start and after
    each step. The output matrix, export and checkpoints are read outside those hooks; and a replica
    without prompts makes no forward pass, so that the other replicas would wait for it for ever.
    """
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def gradients_are_finite(chunks: Sequence[DistributedDataParallel]) -> bool:
    """Whether no rank holds an infinite or NaN gradient, nor one whose square is infinite and would
    stay in the second moment for ever; the same answer on all ranks."""
    # Extremes are NaN if any entry is; isfinite() of every entry would make copies of the buffer.
    finite = torch.stack(
        [
            torch.stack(torch.aminmax(buffer.grad_data)).float().square().isfinite().all()
            for chunk in chunks
            for buffer in chunk.buffers + chunk.expert_parallel_buffers
        ]
    )
    return not any_rank(not finite.all())
