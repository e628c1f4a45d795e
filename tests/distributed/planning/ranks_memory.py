"""Bytes that two steps hold, in layouts of two ranks: of real tensors, or of the fake device.

Arguments: folder of a model, and of one with experts; "real", on two ranks, or the number of the
rank that this process stands for; names of layouts, one only for the fake device. Each rank prints
a line of JSON: layout -> bytes after the build, and at the peak of each phase of the second step.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from dry_runs import (
    CONVERSATIONS,
    GROUP_SIZE,
    PARTS,
    WORKLOAD,
    fine_tuning_recipe,
    pretraining_recipe,
    recipe_for,
)
from layouts import begin_layout
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from megatron_resrl.config.schema import Recipe, RunSettings
from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.config.schema_sft import SftRecipe
from megatron_resrl.diagnostics.standard import standard_observers
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.planning.answers import ANSWERS, BROADCAST, GATHERED, KINDS
from megatron_resrl.planning.recorder import Recorder, RecordingTimers
from megatron_resrl.planning.supervised_phases import fine_tuning_batch, pretraining_batch
from megatron_resrl.platform.fake_device.install import fake_device
from megatron_resrl.platform.fake_device.ledger import Ledger
from megatron_resrl.platform.fake_device.memory import Memory
from megatron_resrl.policy.policy import Policy
from megatron_resrl.token_weighting.factory import build_weighting
from megatron_resrl.training.algorithm import algorithm_of, weighting_of
from megatron_resrl.training.rl_step import StepSettings, rl_step
from megatron_resrl.training.supervised import supervised_step

# Kernels that a CPU would have to compile.
UNFUSED = "model.megatron={bias_activation_fusion: false, bias_dropout_fusion: false}"
LAYOUTS = {
    "dp2": (),
    "tp2": ("parallel.tensor_model_parallel_size=2",),
    "tp2_sp": ("parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"),
    "tp2_packed": ("parallel.tensor_model_parallel_size=2", "algorithm.sequence_packing=true"),
    "pp2": ("parallel.pipeline_model_parallel_size=2",),
    "pp2_vpp2": (
        "parallel.pipeline_model_parallel_size=2",
        "parallel.virtual_pipeline_model_parallel_size=2",
    ),
    "cp2": ("parallel.context_parallel_size=2",),
    "dp2_recompute": (
        "model.recompute_granularity=full",
        "model.recompute_method=uniform",
        "model.recompute_num_layers=1",
        "parallel.use_distributed_optimizer=false",
    ),
}
WITH_EXPERTS = {"ep2": ("parallel.expert_model_parallel_size=2",)}
SUPERVISED = {
    "pretrain_dp2": (),
    "pretrain_tp2_sp": LAYOUTS["tp2_sp"],
    "pretrain_pp2_documents": (*LAYOUTS["pp2"], "data.document_mask=true"),
    "pretrain_cp2": LAYOUTS["cp2"],
    "sft_dp2": (),
    "sft_tp2_padded": (*LAYOUTS["tp2"], "batch.sequence_packing=false", "batch.micro_batch_size=3"),
}
IN_FP8 = {
    "dp2_fp8": ("precision.fp8=hybrid",),
    "tp2_sp_fp8": (*LAYOUTS["tp2_sp"], "precision.fp8=hybrid"),
}
"""On Transformer Engine's layers."""
ALL = LAYOUTS | SUPERVISED | WITH_EXPERTS | IN_FP8
PHASES = ("scoring", "subspace", "update")
Step = Callable[[Policy, int, PhaseTimers], None]
"""Takes the step of a number, whose phases are timed."""


class RealMemory(TorchDispatchMode):
    """Counts real tensors as the fake device counts its own."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory(KINDS)
        self.ledger = Ledger()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not _in_a_collective():
            self.take(tree_flatten(out)[0])
        return out

    def take(self, tensors: Iterable[Any]) -> None:
        """Counts the memory of tensors, once."""
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes():
                self.memory.take(tensor.untyped_storage())


def _in_a_collective() -> bool:
    """Whether gloo is at work, which copies what it reduces; NCCL does not."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and "/torch/_" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None and "/torch/distributed/" in frame.f_code.co_filename


@contextlib.contextmanager
def books(rank: int | None) -> Iterator[Any]:
    """What counts memory: a mode for real tensors, or the device of one rank."""
    if rank is None:
        # The kernel that makes a matrix of scores is the only one of all devices.
        with sdpa_kernel(SDPBackend.MATH), RealMemory() as real:
            yield real
    else:
        with fake_device(
            rank, 2, rules=KINDS, gathered=GATHERED, broadcast=BROADCAST, fused=False
        ) as device:
            device.answers |= ANSWERS
            yield device


def measured(recipe: RunSettings, counted: Any, *, load_weights: bool) -> dict[str, int]:
    """Bytes after the build, and at the peak of each phase of the second of two steps."""
    counted.memory.__init__(KINDS)
    recorder = Recorder(counted)
    policy = Policy.build(
        recipe.model,
        recipe.parallel,
        recipe.precision,
        optimizer=recipe.optimizer,
        load_weights=load_weights,
        sequence_packing=packs(recipe),
    )
    for group in policy.optimizer.param_groups:
        group.update(foreach=True, fused=None)  # As torch chooses on CUDA.
    found = {"build": counted.memory.total}
    step_of = rl_steps(recipe, policy) if isinstance(recipe, Recipe) else supervised_steps(recipe)
    for step in (1, 2):
        step_of(policy, step, RecordingTimers(recorder, PHASES))
        peaks = {name: phase.peak_bytes for name, phase in recorder.take().items()}
    return found | peaks


def packs(recipe: RunSettings) -> bool:
    if isinstance(recipe, PretrainRecipe):
        return recipe.data.document_mask
    if isinstance(recipe, SftRecipe):
        return recipe.batch.sequence_packing
    return recipe.algorithm.sequence_packing


def rl_steps(recipe: Recipe, policy: Policy) -> Step:
    algorithm = algorithm_of(recipe)
    weighting = build_weighting(weighting_of(recipe), policy, recipe.resrl, recipe.rollout, seed=0)

    def take(policy: Policy, step: int, timers: PhaseTimers) -> None:
        observers = standard_observers(recipe.resrl, temperature=1.0, seed=0, timers=timers)
        batch = WORKLOAD.batch(2, GROUP_SIZE)
        settings = StepSettings.from_recipe(recipe)
        rl_step(policy, algorithm, weighting, batch, settings, step, timers, observers)

    return take


def supervised_steps(recipe: PretrainRecipe | SftRecipe) -> Step:
    def take(policy: Policy, step: int, timers: PhaseTimers) -> None:
        if isinstance(recipe, PretrainRecipe):
            batch = pretraining_batch(recipe, PARTS, 2)
        else:
            batch = fine_tuning_batch(recipe, CONVERSATIONS, 2)
        supervised_step(policy, batch, 0.0, timers)

    return take


def recipe_of(name: str, model: Path) -> RunSettings:
    settings = (UNFUSED, *ALL[name])
    if name.startswith("pretrain"):
        return pretraining_recipe(model, *settings)
    if name.startswith("sft"):
        return fine_tuning_recipe(model, *settings)
    return recipe_for(model, *settings)


def main(dense: str, experts: str, kind: str, *names: str) -> None:
    torch.compiler.set_stance("force_eager")
    rank = None if kind == "real" else int(kind)
    found = {}
    with books(rank) as counted:
        for name in names:
            recipe = recipe_of(name, Path(experts if name in WITH_EXPERTS else dense))
            begin_layout(recipe.parallel, 0)
            found[name] = measured(recipe, counted, load_weights=rank is None)
        # One write for the line: the ranks share their output.
        sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
