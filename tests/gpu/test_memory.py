"""The memory of a device is what a dry run says, phase by phase, within 5 %."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpu.dry_record import dry_phases
from gpu.measured import Measured
from gpu.shapes import QWEN3_1_7B, TINY, write_model
from one_step import take_step_on

from megatron_resrl.config.load import load_recipe
from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.planning.workload import Workload
from megatron_resrl.platform.distributed import device, initialize
from megatron_resrl.platform.memory_peaks import memory_peaks
from megatron_resrl.rollout.worker import build_policy

pytestmark = pytest.mark.gpu

APART = 0.05
"""Relative: fragments, and workspaces of kernels."""
PHASES = ("scoring", "update")
SETTINGS = (
    "--precision.params_dtype=bf16",
    "--rollout.prompts_per_step=1",
    "--rollout.group_size=4",
    "--resrl.diagnose_every=0",
)
VARIANTS = {
    "plain": ("--algorithm.micro_batch_size=1",),
    "shared": ("--algorithm.micro_batch_size=4",),
    "recomputed": (
        "--algorithm.shared_prompts=never",
        "--algorithm.micro_batch_size=2",
        "--model.recompute_granularity=full",
        "--model.recompute_method=uniform",
        "--model.recompute_num_layers=1",
    ),
    "packed": (
        "--algorithm.shared_prompts=never",
        "--algorithm.micro_batch_size=2",
        "--algorithm.sequence_packing=true",
    ),
}


@pytest.fixture(scope="module")
def model(one_rank: None, cuda: bool) -> Iterator[Path]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        write_model(Path(name), QWEN3_1_7B if cuda else TINY, device())
        yield Path(name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_of_a_step_is_that_of_a_dry_run(
    model: Path, cuda: bool, measured: Measured, tmp_path: Path, variant: str
) -> None:
    if not cuda and variant != "plain":
        pytest.skip("the memory of a device; one dry run is enough for a rehearsal")
    workload = Workload(512, 1536) if cuda else Workload(16, 48)
    settings = (f"--model.path={model}", *SETTINGS, *VARIANTS[variant])
    phases = dry_phases(tmp_path / "record.json", workload, settings)
    for name in ("build", *PHASES):
        measured.note(f"dry_run_{name}_gib", phases[name].peak_bytes / 2**30)
    gc.collect()
    before = torch.cuda.memory_allocated() if cuda else 0
    recipe = load_recipe(None, settings)
    initialize(recipe.parallel, 0)
    policy, timers = build_policy(recipe), PhaseTimers(memory=memory_peaks())
    batch = workload.batch(recipe.rollout.prompts_per_step, recipe.rollout.group_size)
    take_step_on(policy, recipe, batch, step=1)  # The optimizer's state is made.
    take_step_on(policy, recipe, batch, step=2, timers=timers)
    if not cuda:
        pytest.skip("the memory of a device; the dry run and the step have been run")
    peaks = timers.take_peaks()
    for name in PHASES:
        apart = (peaks[name] - before) / phases[name].peak_bytes - 1
        measured.at_most(f"{name}_apart", abs(apart), APART)
