"""One rank of a dry run, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from megatron.core import parallel_state

from megatron_resrl.config.schema import Recipe, RunSettings
from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.config.schema_sft import SftRecipe
from megatron_resrl.planning.answers import ANSWERS, BROADCAST, GATHERED, KINDS
from megatron_resrl.planning.dry_run import AnyWorkload
from megatron_resrl.planning.layout import role_of
from megatron_resrl.planning.machine import Machine
from megatron_resrl.planning.rank_phases import RankPhases
from megatron_resrl.planning.records import RankRecord
from megatron_resrl.planning.rl_phases import RlPhases
from megatron_resrl.planning.supervised_phases import PretrainPhases, SftPhases
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.platform.fake_device.collectives import GroupNames
from megatron_resrl.platform.fake_device.cuda import Properties
from megatron_resrl.platform.fake_device.install import fake_device

PHASES: dict[type[RunSettings], Callable[..., RankPhases]] = {
    Recipe: RlPhases,
    PretrainRecipe: PretrainPhases,
    SftRecipe: SftPhases,
}
"""Kind of recipe -> the phases of its ranks, made of device, recipe and workload."""


def run_rank(
    recipe: RunSettings, rank: int, world_size: int, workload: AnyWorkload, machine: Machine
) -> RankRecord:
    """Dry-runs one rank; afterwards torch is of no use to this process."""
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")  # Small functions run as they are written.
    gpu = machine.gpu
    properties = Properties(gpu.name, *gpu.capability, total_memory=gpu.memory)
    with fake_device(
        rank,
        world_size,
        rules=KINDS,
        gathered=GATHERED,
        broadcast=BROADCAST,
        properties=properties,
    ) as device:
        device.answers |= ANSWERS
        initialize(recipe.parallel, recipe.seed)
        name_groups(device.groups)
        phases = PHASES[type(recipe)](device, recipe, workload)
        found = phases.records()
        stage = parallel_state.get_pipeline_model_parallel_rank()
        role = role_of(
            stage,
            recipe.parallel.pipeline_model_parallel_size,
            owns_subspace=phases.owns_subspace,
        )
    return RankRecord(rank, role, found)


def name_groups(names: GroupNames) -> None:
    """Gives megatron-core's process groups their names in records."""
    state = parallel_state
    for name, group in (
        ("tensor", state.get_tensor_model_parallel_group()),
        ("pipeline", state.get_pipeline_model_parallel_group()),
        ("context", state.get_context_parallel_group()),
        ("data", state.get_data_parallel_group()),
        ("data", state.get_data_parallel_group(with_context_parallel=True)),
        ("expert", state.get_expert_model_parallel_group()),
        ("expert", state.get_expert_tensor_and_model_parallel_group()),
        ("expert_tensor", state.get_expert_tensor_parallel_group()),
        ("expert_data", state.get_expert_data_parallel_group()),
        ("subspace", state.get_tensor_and_context_parallel_group()),
        ("pipeline", state.get_embedding_group(check_initialized=False)),
    ):
        if group is not None:
            names.name(group, name)
