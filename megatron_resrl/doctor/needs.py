"""What a recipe asks of its machines."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from megatron_resrl.checks.facts import gather_facts
from megatron_resrl.checks.sizes import disk_needed
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import Recipe, RewardConfig, RunSettings
from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.evaluation.suites import SUITES
from megatron_resrl.policy.sizes import sizes_of
from megatron_resrl.rewards.parts import named_functions
from megatron_resrl.rewards.registry import RUNS_CODE
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
    code: CodeConfig | None = None
    """Where programs of responses run; None: none are."""


def needs_of(recipe: RunSettings, python: str, *, has_cuda: bool) -> Needs:
    """What a recipe asks for, but for sizes: reads no file.

    Args:
        recipe: Of any stage.
        python: The interpreter of this process, which also runs servers unless the recipe names
            another.
        has_cuda: Whether the hosts have GPUs.
    """
    needs = Needs(
        output_dir=recipe.output_dir,
        tensor_parallel=recipe.parallel.tensor_model_parallel_size,
        code=recipe.reward.code if isinstance(recipe, Recipe) and _runs_code(recipe) else None,
    )
    if not isinstance(recipe, Recipe) or recipe.rollout.engine != "vllm" or recipe.rollout.replay:
        return needs
    placement = recipe.rollout.placement
    backend, _ = transfer_backend(recipe.vllm, placement, has_cuda=has_cuda)
    return dataclasses.replace(
        needs,
        vllm_python=None if recipe.vllm.urls else recipe.vllm.python or python,
        nccl_transfer=backend == "nccl",
        transfer_dir=recipe.vllm.transfer_dir if backend == "file" else "",
    )


def _runs_code(recipe: Recipe) -> bool:
    own = [each.get("reward") for each in recipe.evaluation.entries if isinstance(each, dict)]
    named = [each.get("function") if isinstance(each, dict) else each for each in own]
    suites = [
        each.get("suite") if isinstance(each, dict) else each for each in recipe.evaluation.suites
    ]
    named += [SUITES[name].reward for name in suites if name in SUITES]
    lists = [RewardConfig(functions=tuple(each)) for each in own if isinstance(each, (list, tuple))]
    functions = [name for each in (recipe.reward, *lists) for name in named_functions(each)]
    return any(each in RUNS_CODE for each in (*functions, *named) if isinstance(each, str))


def with_sizes(needs: Needs, recipe: RunSettings, world_size: int) -> tuple[Needs, list[Problem]]:
    """The needs with sizes, from the model's config.json and the checkpoints that there are.

    Args:
        needs: See `needs_of`.
        recipe: The same.
        world_size: Ranks of the job.

    Returns:
        The needs, and what is wrong with the model's directory, which leaves sizes unknown.
    """
    facts, problems = gather_facts(recipe, world_size)
    if not facts.hf_config or facts.data_parallel_size is None:
        return needs, problems
    try:
        sizes = sizes_of(recipe.parallel, recipe.precision, world_size, facts.hf_config)
        _, kept = disk_needed(recipe, sizes)
    except (KeyError, TypeError, ZeroDivisionError, ValueError, OSError):
        return needs, problems  # `check` says what is wrong with the model.
    return dataclasses.replace(
        needs,
        export=sizes.export,
        checkpoint=sizes.checkpoint,
        kept=kept,
        host_memory=sizes.background_save if recipe.checkpoint.async_save else 0,
        device_memory=sizes.rank,
    ), problems
