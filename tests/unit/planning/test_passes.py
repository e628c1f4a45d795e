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
        (("algorithm.weighting=shear",), 2),
        (("algorithm.weighting=nthr",), 2),
        (("algorithm.weighting=thr",), 2),
    ],
)
def test_forward_passes_are_those_of_the_run(settings, passes):
    recipe = recipe_for(Path("nowhere"), SINGLE_PASS, *settings)
    assert forward_passes(recipe, LAYERS, 64) == passes


@pytest.mark.setting("algorithm.kl_coefficient")
@pytest.mark.parametrize(("single_pass", "own"), [("auto", 1), ("never", 2)])
def test_plan_counts_the_pass_of_a_reference(single_pass, own):
    settings = (f"algorithm.single_pass={single_pass}", "algorithm.kl_coefficient=0.1")
    step = StepShape.of(recipe_for(Path("nowhere"), *settings), 1, LAYERS)
    assert step.passes == own + 1
    assert step.work.scoring_passes == own
    assert step.work.scoring is not None


@pytest.mark.parametrize(("teacher", "passes"), [("path=nowhere", 2), ("url=http://a", 1)])
def test_plan_counts_the_pass_of_a_frozen_teacher(teacher, passes):
    settings = ("algorithm.name=distillation", f"teacher.{teacher}", SINGLE_PASS)
    assert StepShape.of(recipe_for(Path("nowhere"), *settings), 1, LAYERS).passes == passes


@pytest.mark.parametrize(
    ("settings", "responses"),
    [
        ((), 1),
        (("algorithm.shared_prompts=auto",), 4),
        # Correct responses pass before the incorrect ones.
        (("algorithm.shared_prompts=auto", SINGLE_PASS), 2),
        (("algorithm.shared_prompts=auto", SINGLE_PASS, GRPO), 4),
        (("algorithm.shared_prompts=auto", "algorithm.weighting=shear"), 4),
        (("algorithm.shared_prompts=auto", "algorithm.micro_batch_size=1"), 1),
        (("algorithm.shared_prompts=always", "algorithm.micro_batch_size=1"), 4),
        (("algorithm.shared_prompts=auto", "precision.fp8=hybrid"), 1),
        (("algorithm.shared_prompts=auto", "model.hidden_dropout=0.1"), 1),
    ],
)
def test_step_shares_prompts_as_the_run_does(settings, responses):
    step = StepShape.of(recipe_for(Path("nowhere"), *settings), 1, LAYERS)
    assert step.together == responses
    assert step.packed == (responses > 1)


def test_scoring_pass_has_correct_responses_together():
    settings = ("algorithm.shared_prompts=auto", "algorithm.micro_batch_size=4")
    work = StepShape.of(recipe_for(Path("nowhere"), *settings), 1, LAYERS).work
    # Two correct responses of each of two prompts; an update has the four of one.
    assert (work.scoring.tokens, work.tokens) == (2 * 24 + 4 * 40, 24 + 4 * 40)
    assert work.scoring.targets == work.targets


def test_step_of_one_pass_has_no_scoring():
    one, two = (
        StepShape.of(recipe_for(Path("nowhere"), setting), 1, LAYERS).work
        for setting in (SINGLE_PASS, "algorithm.single_pass=never")
    )
    assert one.scoring is None
    assert two.scoring.tokens == two.tokens
    # The loss makes logits again for the backward pass either way.
    assert one.logits_twice
    assert two.logits_twice
