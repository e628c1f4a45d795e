"""The host waits for the device no more often than a dry run says."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpu.dry_record import dry_phases
from gpu.measured import Measured
from one_step import take_step_on

from megatron_resrl.config.load import load_recipe
from megatron_resrl.planning.workload import Workload
from megatron_resrl.platform.fake_device.lines import origin
from megatron_resrl.rollout.worker import build_policy

pytestmark = pytest.mark.gpu

PHASES = ("scoring", "subspace", "update")
WORKLOAD = Workload(prompt_tokens=17, response_tokens=40)
SETTINGS = (
    "--precision.params_dtype=bf16",
    "--rollout.prompts_per_step=2",
    "--rollout.group_size=4",
    "--algorithm.micro_batch_size=2",
    "--resrl.diagnose_every=0",
    "--resrl.rank=8",
)
VARIANTS = {
    "padded": ("--algorithm.shared_prompts=never",),
    "packed": ("--algorithm.shared_prompts=never", "--algorithm.sequence_packing=true"),
    "shared": (),
}


@contextlib.contextmanager
def noted_waits(cuda: bool) -> Iterator[Counter[str]]:
    """Counts by line of the product where torch says that the host waits."""
    waits: Counter[str] = Counter()

    def note(message: Warning, *_: object) -> None:
        if "synchronizing CUDA operation" in str(message):
            waits[line_of(origin().line)] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")


def line_of(place: str) -> str:
    """Without the line of the library in it."""
    return place.partition(" (")[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_step_waits_as_often_as_a_dry_run_says(
    one_rank: None, llama: Path, cuda: bool, measured: Measured, tmp_path: Path, variant: str
) -> None:
    settings = (f"--model.path={llama}", *SETTINGS, *VARIANTS[variant])
    phases = dry_phases(tmp_path / "record.json", WORKLOAD, settings)
    expected: Counter[str] = Counter()
    for name in PHASES:
        for wait in phases[name].waits:
            expected[line_of(wait.line)] += wait.count
    recipe = load_recipe(None, settings)
    policy = build_policy(recipe)
    batch = WORKLOAD.batch(recipe.rollout.prompts_per_step, recipe.rollout.group_size)
    take_step_on(policy, recipe, batch, step=1)
    with noted_waits(cuda) as waits:
        take_step_on(policy, recipe, batch, step=2)
    measured.at_most("waits", sum(waits.values()), sum(expected.values()))
    # Waits of backward are reported at the line that called it.
    for line, count in sorted(waits.items()):
        measured.note(line, count, f"{expected[line]} in the dry run")


def test_noted_waits_counts_lines_of_the_product() -> None:
    with noted_waits(cuda=False) as waits:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert waits == {"elsewhere": 2}
