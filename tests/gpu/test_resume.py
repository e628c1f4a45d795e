"""A run that is killed goes on to the same bits, and a checkpoint of an optimizer without steps
can be resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_checkpoint as tiny
import torch
from faults import Fault, assert_same_run, run_task
from gpu.measured import Measured
from tiny_task import write_task

from megatron_resrl.checkpoint import (
    TrainerState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.weights.hugging_face import export_weights

pytestmark = pytest.mark.gpu

STEP = 1e-5
"""Of weights; a wrong count of steps moves them by 5e-3."""


def test_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    settings = {
        "steps": 3,
        "precision": {"params_dtype": "bf16", "deterministic": True},
        "evaluation": {"files": []},
        # A checkpoint is complete before the next one begins, in the background.
        "checkpoint": {"save_every": 1},
    }
    straight = tmp_path / "straight"
    straight.mkdir()
    done = run_task(write_task(straight, **settings), ranks=1, timeout=90)
    assert done.code == 0, done.text
    recipe = write_task(tmp_path, **settings)
    killed = run_task(recipe, Fault("kill", "phase:update", rank=0), ranks=1, timeout=90)
    assert killed.code == -9, killed.text
    resumed = run_task(recipe, ranks=1, timeout=90)
    assert resumed.code == 0, resumed.text
    assert "resumed after step" in resumed.text
    assert_same_run(tmp_path / "run", straight / "run")


@pytest.mark.parametrize("distributed", [True, False], ids=["distributed", "plain"])
def test_checkpoint_before_the_first_step_has_no_steps(
    one_rank: None, measured: Measured, tmp_path: Path, distributed: bool
) -> None:
    models = tiny.write_models(tmp_path / "models")
    recipe = tiny.recipe(models / "qwen3", {"use_distributed_optimizer": distributed})
    initialize(recipe.parallel, 0)
    unmoved, resumed = build_policy(recipe), build_policy(recipe)
    save_checkpoint(tmp_path / "run", unmoved, TrainerState(0, {}), keep_last=1)
    load_checkpoint(latest_checkpoint(tmp_path / "run"), resumed)
    for number in (1, 2):
        for policy in (unmoved, resumed):
            tiny.take_step(policy, number)
        measured.at_most(f"weights_after_step_{number}", distance(unmoved, resumed), STEP)


def distance(first: Policy, second: Policy) -> float:
    """Largest between two policies' weights."""
    own, other = (dict(export_weights(each.modules, each.hf_config)) for each in (first, second))
    assert own.keys() == other.keys()
    return max(float(torch.sub(own[name], other[name]).abs().max()) for name in own)
