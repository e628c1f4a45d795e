"""Host waits: a reviewed table, so that a new `.item()` in a loop fails here."""

from pathlib import Path

import pytest
from dry_runs import phases_of, write_config

MICRO_BATCHES = 2
"""Of a group."""
LAYERS = 4
PER_STEP = {"scoring": 21, "subspace": 12, "update": 37}
"""Phase -> waits of a step of one window, that do not grow with its micro-batches."""
PER_LAYER_WITH_EXPERTS = 8
"""Per micro-batch and layer: megatron-core's dispatcher reads how many tokens each expert gets."""


def waits(model: Path, prompts: int, *settings: str, world_size: int = 1) -> dict[str, int]:
    phases = phases_of(
        model, *settings, f"rollout.prompts_per_step={prompts}", world_size=world_size
    )
    return {name: sum(each.count for each in phases[name].waits) for name in PER_STEP}


def test_waits_of_a_step_do_not_grow_with_micro_batches(tmp_path_factory):
    model = write_config(tmp_path_factory.mktemp("dense"))
    few, more = waits(model, 2), waits(model, 3)
    assert all(few[name] <= limit for name, limit in PER_STEP.items()), few
    growth = {name: more[name] - few[name] for name in ("scoring", "update")}
    assert growth == {"scoring": 0, "update": 0}


@pytest.mark.slow
def test_waits_of_experts_are_the_dispatchers(tmp_path_factory):
    model = write_config(tmp_path_factory.mktemp("experts"), experts=True)
    ep2 = "parallel.expert_model_parallel_size=2"
    few, more = (waits(model, prompts, ep2, world_size=2) for prompts in (4, 6))
    limit = MICRO_BATCHES * LAYERS * PER_LAYER_WITH_EXPERTS
    assert more["scoring"] - few["scoring"] <= limit
    assert more["update"] - few["update"] <= limit
