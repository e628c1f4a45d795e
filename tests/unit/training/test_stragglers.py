"""The rank that the others wait for is found and named."""

from __future__ import annotations

import pytest

from megatron_resrl.config.schema_health import HealthConfig
from megatron_resrl.training.stragglers import (
    Straggler,
    StragglerWatch,
    straggler_metrics,
    stragglers,
)

PLACES = [f"rank {rank} (host node{rank // 2})" for rank in range(4)]


def watch_of(**settings: float) -> StragglerWatch:
    return StragglerWatch(HealthConfig(**settings), PLACES)


def slow(rank: int, ratio: float, phase: str = "update") -> dict[str, Straggler]:
    return {phase: Straggler(phase, rank, ratio, 1.0)}


def test_stragglers_are_the_slowest_of_their_stage():
    own = [{"rollout": r, "update": u} for r, u in ((4, 2), (5, 2.1), (4.1, 6), (4, 5))]
    found = stragglers(own, [[0, 1], [2, 3]])
    assert found["rollout"] == Straggler("rollout", 1, 5, 4)
    # The stages differ in their work: rank 2 is compared with rank 3.
    assert found["update"] == Straggler("update", 2, 6, 5)
    assert straggler_metrics(found) == {
        "straggler/rollout_ratio": 1.25,
        "straggler/update_ratio": pytest.approx(1.2),
        "straggler/rank": 1.0,
        "straggler/wait_seconds": 1,
    }


def test_stragglers_ignore_what_one_rank_does_for_all():
    own = [{"rollout": 30.0 if rank == 0 else 0.0, "update": 2.0} for rank in range(4)]
    found = stragglers(own, [[0, 1, 2, 3]])
    assert set(found) == {"update"}
    assert found["update"].ratio == 1
    assert stragglers(own[:1], [[0]]) == {}
    assert straggler_metrics({}) == {}


@pytest.mark.setting("health.straggler_steps")
def test_straggler_is_named_once_after_some_steps():
    watch = watch_of(straggler_steps=3)
    said = [watch.finish_step(slow(2, 1.8)) for _ in range(6)]
    assert [text is not None for text in said] == [False, False, True, False, False, False]
    assert said[2] is not None
    assert said[2].startswith("rank 2 (host node1) has been the slowest in phase 'update' for 3 st")
    assert "1.80 times" in said[2]
    assert "0.80 s" in said[2]
    at_once = watch_of(straggler_steps=1)
    assert at_once.finish_step(slow(2, 1.8))


def test_straggler_is_named_again_after_it_was_fast():
    watch = watch_of(straggler_steps=2)
    steps = [1.8, 1.8, 1.1, 1.8, 1.8, 1.1, 1.1, 1.8, 1.8]
    said = [watch.finish_step(slow(1, ratio)) is not None for ratio in steps]
    # One fast step is not enough to be forgotten.
    assert [number for number, each in enumerate(said) if each] == [1, 8]


@pytest.mark.setting("health.straggler_ratio")
def test_straggler_must_be_the_same_rank_and_slow():
    watch = watch_of(straggler_steps=2)
    assert not any(watch.finish_step(slow(rank, 1.8)) for rank in (0, 1, 2, 3, 0))
    assert not any(watch.finish_step(slow(1, 1.4)) for _ in range(9))
    assert not any(watch.finish_step({}) for _ in range(9))
    assert watch_of(straggler_ratio=1.3, straggler_steps=1).finish_step(slow(1, 1.4))
