"""How many passes a plan counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from dry_runs import SINGLE_PASS, recipe_for

from megatron_resrl.planning.passes import forward_passes
from megatron_resrl.planning.step_shape import StepShape

LAYERS = 4
PIPELINE = "parallel.pipeline_model_parallel_size=2"
GRPO = "algorithm.name=grpo"


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ((), 1),
        (("algorithm.single_pass=never",), 2),
        (("algorithm.updates_per_step=2",), 2),
        (("correction.method=sequence_tis",), 2),
        # A group has two incorrect responses.
        (("algorithm.micro_batch_size=1",), 2),
        (("algorithm.micro_batch_size=1", GRPO), 1),
        (("algorithm.max_tokens_per_micro_batch=100",), 2),
        (("algorithm.max_tokens_per_micro_batch=128",), 1),
        ((PIPELINE,), 1),
        # The input of the second layer is on the first of two stages.
        ((PIPELINE, "resrl.layer=1"), 2),
        ((PIPELINE, "resrl.layer=2"), 1),
        ((PIPELINE, "resrl.layer=1", GRPO), 1),
    ],
)
def test_forward_passes_are_those_of_the_run(settings, passes):
    recipe = recipe_for(Path("nowhere"), SINGLE_PASS, *settings)
    assert forward_passes(recipe, LAYERS, 64) == passes


def test_step_of_one_pass_has_no_scoring():
    one, two = (
        StepShape.of(recipe_for(Path("nowhere"), setting), 1, LAYERS).work
        for setting in (SINGLE_PASS, "algorithm.single_pass=never")
    )
    assert not one.scoring
    assert two.scoring
    # The loss makes logits again for the backward pass either way.
    assert one.logits_twice
    assert two.logits_twice
