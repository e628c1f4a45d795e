"""Dynamic sampling, reuse of finished groups after a kill, record and replay, of whole runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from faults import Ended, Fault, assert_same_run, run_task
from tiny_task import read_metrics, write_task

GROUPS = 4


def _task(directory: Path, **overrides: object) -> Path:
    """Groups of two, half of which agree, and a checkpoint after step 2."""
    rollout = {
        "prompts_per_step": GROUPS,
        "group_size": 2,
        "max_response_length": 8,
        "dynamic_sampling": True,
        "max_refills": 2,
    }
    settings = {"rollout": rollout, "steps": 3, "checkpoint__async_save": False}
    return write_task(directory, **settings | overrides)


def _train(recipe: Path, *settings: str, fault: Fault | None = None) -> Ended:
    return run_task(recipe, fault, *settings, ranks=1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that recorded its rollouts in `record`."""
    directory = tmp_path_factory.mktemp("recorded")
    done = _train(_task(directory), f"--rollout.record={directory / 'record'}")
    assert done.code == 0, done.text
    return directory


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Callable[[], Path]:
    """The same recipe with a run folder of its own."""

    def make() -> Path:
        recipe = tmp_path / "recipe.yaml"
        text = (recorded / "recipe.yaml").read_text()
        recipe.write_text(text.replace(str(recorded / "run"), str(tmp_path / "run")))
        return recipe

    return make


def test_groups_without_signal_are_refilled_and_the_step_keeps_its_size(recorded):
    metrics = read_metrics(recorded / "run")[1:]
    assert any(line["rollout/refill_rounds"] > 0 for line in metrics)
    for step, line in enumerate(metrics, start=1):
        columns = pq.read_table(recorded / "record" / f"step_{step:06d}.parquet").to_pydict()
        assert len(columns["round"]) == 2 * line["rollout/groups_generated"]
        assert max(columns["round"]) == line["rollout/refill_rounds"] <= 2
        inside = [number for number in columns["group"] if number is not None]
        assert sorted(inside) == sorted([*range(GROUPS)] * 2)
        silent = line["rollout/groups_without_signal"]
        assert line["reward/groups_with_signal"] == 1 - silent / GROUPS
        if silent:
            assert line["rollout/refill_rounds"] == 2


def test_a_replayed_run_equals_the_recorded_one_bit_by_bit(recorded, copy, tmp_path):
    done = _train(copy(), f"--rollout.replay={recorded / 'record'}")
    assert done.code == 0, done.text
    assert_same_run(tmp_path / "run", recorded / "run")
    assert not list((tmp_path / "run").glob("rollouts/*"))


def test_a_replay_with_another_seed_names_step_prompt_and_file(recorded, copy):
    done = _train(copy(), f"--rollout.replay={recorded / 'record'}", "--seed=4")
    assert done.code == 2, done.text
    assert "step 1, round 0, prompt " in done.text
    assert str(recorded / "record" / "step_000001.parquet") in done.text


@pytest.mark.slow
def test_another_algorithm_trains_on_the_same_rollouts(recorded, copy, tmp_path):
    replay = f"--rollout.replay={recorded / 'record'}"
    done = _train(copy(), replay, "--algorithm.name=grpo", "--rollout.dynamic_sampling=false")
    assert done.code == 0, done.text
    theirs, ours = read_metrics(recorded / "run"), read_metrics(tmp_path / "run")
    for name in ("reward/mean", "response/length_mean", "rollout/groups_generated"):
        assert [line.get(name) for line in ours] == [line.get(name) for line in theirs]


@pytest.mark.slow
def test_runs_killed_in_a_rollout_reuse_finished_groups_and_end_with_the_same_bits(
    recorded, copy, tmp_path
):
    recipe = copy()
    killed = _train(recipe, fault=Fault("kill", "group:0/1", step=2, rank=0))
    assert killed.code == -9, killed.text
    log = tmp_path / "run" / "rollouts" / "step_000002.groups"
    assert log.is_file()
    log.write_bytes(log.read_bytes() + b"GRP1 a torn end")
    refilled = next(
        line["step"] for line in read_metrics(recorded / "run") if line.get("rollout/refill_rounds")
    )
    if refilled > 1:
        killed = _train(recipe, fault=Fault("kill", "group:1/0", step=refilled, rank=0))
        assert killed.code == -9, killed.text
        assert "step 2, round 0: 2 of 4 groups were finished before" in killed.text
        assert "was not written whole; 2 groups are" in killed.text
    done = _train(recipe)
    assert done.code == 0, done.text
    assert "groups were finished before" in done.text
    assert_same_run(tmp_path / "run", recorded / "run")
