"""Bytes that two steps hold, in layouts of two ranks: of real tensors, or of the fake device.

Arguments: folder of a model, and of one with experts; "real", on two ranks, or the number of the
rank that this process stands for; names of layouts, one only for the fake device. Each rank prints
a line of JSON: layout -> bytes after the build, and at the peak of each phase of the second step.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from dry_runs import GROUP_SIZE, WORKLOAD, recipe_for
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from megatron_resrl.config.schema import Recipe
from megatron_resrl.diagnostics.standard import standard_observers
from megatron_resrl.planning.answers import ANSWERS, BROADCAST, GATHERED, KINDS
from megatron_resrl.planning.recorder import Recorder, RecordingTimers
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.platform.fake_device.install import fake_device
from megatron_resrl.platform.fake_device.ledger import Ledger
from megatron_resrl.platform.fake_device.memory import Memory
from megatron_resrl.policy.policy import Policy
from megatron_resrl.token_weighting.factory import build_weighting
from megatron_resrl.training.algorithm import algorithm_of
from megatron_resrl.training.rl_step import StepSettings, rl_step

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
IN_FP8 = {
    "dp2_fp8": ("precision.fp8=hybrid",),
    "tp2_sp_fp8": (*LAYOUTS["tp2_sp"], "precision.fp8=hybrid"),
}
"""On Transformer Engine's layers."""
PHASES = ("scoring", "subspace", "update")


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


def measured(recipe: Recipe, counted: Any, *, load_weights: bool) -> dict[str, int]:
    """Bytes after the build, and at the peak of each phase of the second of two steps."""
    counted.memory.__init__(KINDS)
    recorder = Recorder(counted)
    policy = Policy.build(
        recipe.model,
        recipe.parallel,
        recipe.precision,
        optimizer=recipe.optimizer,
        load_weights=load_weights,
    )
    for group in policy.optimizer.param_groups:
        group["foreach"] = True  # As torch chooses on CUDA.
    found = {"build": counted.memory.total}
    algorithm = algorithm_of(recipe)
    weighting = build_weighting(algorithm, policy, recipe.resrl, recipe.rollout, seed=0)
    for step in (1, 2):
        timers = RecordingTimers(recorder, PHASES)
        observers = standard_observers(recipe.resrl, temperature=1.0, seed=0, timers=timers)
        batch = WORKLOAD.batch(2, GROUP_SIZE)
        settings = StepSettings.from_recipe(recipe)
        rl_step(policy, algorithm, weighting, batch, settings, step, timers, observers)
        peaks = {name: phase.peak_bytes for name, phase in recorder.take().items()}
    return found | peaks


def main(dense: str, experts: str, kind: str, *names: str) -> None:
    torch.compiler.set_stance("force_eager")
    rank = None if kind == "real" else int(kind)
    found = {}
    with books(rank) as counted:
        for name in names:
            model = experts if name in WITH_EXPERTS else dense
            settings = (LAYOUTS | WITH_EXPERTS | IN_FP8)[name]
            recipe = recipe_for(Path(model), UNFUSED, *settings)
            initialize(recipe.parallel, 0)
            found[name] = measured(recipe, counted, load_weights=rank is None)
        print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
