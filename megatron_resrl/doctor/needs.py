"""What a recipe asks of its machines."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_resrl.checks.facts import gather_facts
from megatron_resrl.checks.sizes import disk_needed
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import Recipe, RunSettings
from megatron_resrl.policy.sizes import Sizes, sizes_of
from megatron_resrl.rollout.weight_sync.choice import transfer_backend


@dataclass(frozen=True)
class Needs:
    """Of one job. Sizes in bytes; 0 where no recipe, or no model, says them."""

    output_dir: str = "."
    vllm_python: str | None = None
    """Interpreter of the servers that the run starts; None: it starts none."""
    nccl_transfer: bool = False
    """Whether weights go to servers by NCCL."""
    transfer_dir: str = ""
    """Where weights go to servers as files; empty: they do not."""
    export: int = 0
    """Of the weights as files."""
    checkpoint: int = 0
    kept: int = 0
    """Of all that the run keeps on disk."""
    host_memory: int = 0
    """Of each rank, while a checkpoint is written in the background."""
    device_memory: int = 0
    """Of each rank: weights, gradients and optimizer; activations come on top."""
    tensor_parallel: int = 1


def needs_of(
    recipe: RunSettings, world_size: int, python: str, *, has_cuda: bool
) -> tuple[Needs, list[Problem]]:
    """What a recipe asks for.

    Args:
        recipe: Of any stage.
        world_size: Ranks of the job.
        python: The interpreter of this process, which also runs servers unless the recipe says
            another.
        has_cuda: Whether the hosts have GPUs.

    Returns:
        The needs, and what is wrong with the model's directory, which leaves sizes unknown.
    """
    facts, problems = gather_facts(recipe, world_size)
    sizes: Sizes | None = None
    kept = 0
    if facts.hf_config and facts.data_parallel_size is not None:
        try:
            sizes = sizes_of(recipe.parallel, recipe.precision, world_size, facts.hf_config)
            _, kept = disk_needed(recipe, sizes)
        except (KeyError, TypeError, ZeroDivisionError, ValueError, OSError):
            sizes = None  # `check` says what is wrong with the model.
    vllm_python, nccl, transfer_dir = None, False, ""
    if isinstance(recipe, Recipe) and recipe.rollout.engine == "vllm" and not recipe.rollout.replay:
        vllm_python = None if recipe.vllm.urls else recipe.vllm.python or python
        placement = recipe.rollout.placement
        backend, _ = transfer_backend(recipe.vllm, placement, has_cuda=has_cuda)
        nccl = backend == "nccl"
        transfer_dir = recipe.vllm.transfer_dir if backend == "file" else ""
    return (
        Needs(
            output_dir=recipe.output_dir,
            vllm_python=vllm_python,
            nccl_transfer=nccl,
            transfer_dir=transfer_dir,
            export=sizes.export if sizes else 0,
            checkpoint=sizes.checkpoint if sizes else 0,
            kept=kept,
            host_memory=sizes.background_save if sizes and recipe.checkpoint.async_save else 0,
            device_memory=sizes.rank if sizes else 0,
            tensor_parallel=recipe.parallel.tensor_model_parallel_size,
        ),
        problems,
    )
