"""A whole step, from dry runs of few groups."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from dry_runs import SINGLE_PASS, WORKLOAD, recipe_for, write_config

from megatron_resrl.config.schema import Recipe
from megatron_resrl.planning.dry_run import dry_run
from megatron_resrl.planning.records import PhaseRecord
from megatron_resrl.planning.sample import GroupsOfStep, Sample, whole_step

PIPELINE = "parallel.pipeline_model_parallel_size"
VIRTUAL = "parallel.virtual_pipeline_model_parallel_size"
# Groups of so few tokens would share the windows in which token weights are made.
OWN_WINDOW = "resrl.window_tokens=1"
WHOLE_STEP = dataclasses.replace(WORKLOAD, whole_step=True)


def recipe(*settings: str) -> Recipe:
    return recipe_for(Path("nowhere"), *settings)


@pytest.mark.parametrize(
    ("settings", "few", "period"),
    [
        ((), 1, 1),  # A group is two micro-batches of two.
        (("algorithm.micro_batch_size=8",), 2, 2),
        ((f"{PIPELINE}=4",), 2, 1),
        ((f"{PIPELINE}=4", f"{VIRTUAL}=2"), 4, 2),  # Eight micro-batches, four at a time.
        (("algorithm.micro_batch_size=3", "rollout.group_size=7"), 3, 3),
        (("algorithm.micro_batch_size=5", "rollout.group_size=16"), 1, 1),  # Not 5 and 5.
    ],
)
def test_sample_fills_the_pipeline(settings, few, period):
    assert Sample.of(recipe(*settings)) == Sample(few, period)


def test_sample_is_no_larger_than_the_step():
    sample = Sample(2, 1)
    assert sample.sizes(GroupsOfStep(1, 1, 1)) == [1]
    assert sample.sizes(GroupsOfStep(4, 1, 4)) == [1, 2, 3]
    assert sample.sizes(GroupsOfStep(16, 4, 4)) == [2, 3]


@pytest.mark.setting("resrl.refresh")
def test_groups_of_step_count_what_is_scored_again():
    settings = ("rollout.prompts_per_step=16", "algorithm.updates_per_step=4")
    assert GroupsOfStep.of(recipe(*settings), 2) == GroupsOfStep(8, 2, 4)
    again = GroupsOfStep.of(recipe(*settings, "resrl.refresh=minibatch"), 2)
    assert again == GroupsOfStep(8, 2, 4, scored_again=6)


def phase(name: str, groups: int, start: int) -> PhaseRecord:
    """A fixed part, and as much for each group."""
    count = 3 + 5 * groups
    return PhaseRecord(
        name, start, start + 100 + 10 * groups, {}, (), (), (), {}, count, count, count
    )


def test_whole_step_adds_what_a_group_adds():
    runs = {
        size: {"scoring": phase("scoring", size, 50), "update": phase("update", size, 50 + size)}
        for size in (2, 3)
    }
    found = whole_step(runs, Sample(2, 1), GroupsOfStep(12, 6, 2))
    assert found["scoring"].kernels == 3 + 5 * 12
    assert found["update"].kernels == 2 * (3 + 5 * 6)
    # Log-probabilities of all groups stay until the last update, whose micro-batches are half.
    assert found["update"].start_bytes == 50 + 12
    assert found["update"].peak_bytes == 50 + 12 + 100 + 10 * 6
    assert found["update"].peak_by_kind["activations"] == 3 * 11 + 6


def test_whole_step_counts_full_periods():
    runs = {size: {"update": phase("update", size, 0)} for size in (2, 4)}
    found = whole_step(runs, Sample(2, 2), GroupsOfStep(7, 7, 1))
    assert found["update"].kernels == 3 + 5 * 8


def counts(record: PhaseRecord) -> dict[str, object]:
    """What grows with the groups; the host's traffic is text, of numbers that have no fixed
    length."""
    return {
        "traffic": [each for each in record.traffic if each.group != "host"],
        "waits": record.waits,
        "flops": record.matrix_flops,
        "kernels": record.kernels,
    }


@pytest.mark.parametrize(
    ("settings", "rank", "size"),
    [
        # Fewer micro-batches than stages, and more than two fillings.
        ((f"{PIPELINE}=4", "rollout.prompts_per_step=1"), 3, 4),
        ((f"{PIPELINE}=2", "rollout.prompts_per_step=5", OWN_WINDOW), 1, 2),
        ((f"{PIPELINE}=2", "rollout.prompts_per_step=5", OWN_WINDOW, SINGLE_PASS), 1, 2),
        pytest.param(
            (f"{PIPELINE}=2", f"{VIRTUAL}=2", "rollout.prompts_per_step=6", OWN_WINDOW),
            *(1, 2),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (f"{PIPELINE}=4", "rollout.prompts_per_step=16", "algorithm.updates_per_step=2"),
            *(0, 4),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_shortened_step_is_the_whole_step(settings, rank, size, tmp_path):
    model = write_config(tmp_path / "model")
    both = [
        dry_run(recipe_for(model, *settings), rank, size, load) for load in (WORKLOAD, WHOLE_STEP)
    ]
    short, whole = ({each.name: each for each in record.phases} for record in both)
    assert short["update"].peak_bytes == pytest.approx(whole["update"].peak_bytes, rel=0.01)
    for name in {"scoring", "subspace", "update"} & set(whole):
        assert counts(short[name]) == counts(whole[name]), name
        # Scoring's further groups are taken to hold what an update's do, which is more.
        assert short[name].peak_bytes == pytest.approx(whole[name].peak_bytes, rel=0.02)


def test_last_stage_lets_go_of_what_it_received(tmp_path):
    model = write_config(tmp_path / "model")
    few, more = (
        dry_run(
            recipe_for(model, f"{PIPELINE}=2", f"rollout.prompts_per_step={prompts}", OWN_WINDOW),
            *(1, 2, WHOLE_STEP),
        ).phases
        for prompts in (1, 3)
    )
    peaks = [next(p.peak_bytes for p in phases if p.name == "update") for phases in (few, more)]
    # Two more groups are four more micro-batches of [63, 2, 128] in bf16.
    assert peaks[1] - peaks[0] < 4 * 63 * 2 * 128 * 2
