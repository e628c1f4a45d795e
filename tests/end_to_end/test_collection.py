"""Dynamic sampling, reuse of finished groups after a kill, record and replay, of whole runs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from faults import Ended, Fault, assert_same_run, run_task
from ranks import REPOSITORY
from tiny_task import read_metrics, write_task

GROUPS = 4
GAMES = REPOSITORY / "examples" / "tools"


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


def _steps(*runs: Path) -> list[list[dict]]:
    """Metrics of each run's training steps."""
    return [read_metrics(run)[1:] for run in runs]


def assert_same_steps(run: Path, other: Path) -> None:
    """Equal but for the order of fp32 sums, three steps deep."""
    for line, expected in zip(*_steps(run, other), strict=True):
        for name in ("loss", "grad_norm", "reward/mean", "rollout/groups_generated"):
            assert line[name] == pytest.approx(expected[name], rel=2e-3, abs=1e-5), name


@pytest.mark.setting("rollout.dynamic_sampling", "rollout.max_refills")
def test_collection_refills_groups_without_signal_to_full_size(recorded):
    metrics = read_metrics(recorded / "run")[1:]
    assert any(line["rollout/refill_rounds"] > 0 for line in metrics)
    for step, line in enumerate(metrics, start=1):
        columns = pq.read_table(recorded / "record" / f"step_{step:06d}.parquet").to_pydict()
        assert len(columns["round"]) == 2 * line["rollout/groups_generated"]
        assert max(columns["round"]) == line["rollout/refill_rounds"] <= 2
        inside = [number for number in columns["group"] if number is not None]
        assert sorted(inside) == sorted([*range(GROUPS)] * 2)
        silent = line["rollout/groups_without_signal"]
        assert line["rollout/nonzero_advantage_groups"] == 1 - silent / GROUPS
        if silent:
            assert line["rollout/refill_rounds"] == 2


@pytest.mark.setting("rollout.record", "rollout.replay")
def test_recording_of_a_killed_run_replays_the_run_bit_by_bit(recorded, copy, tmp_path):
    record, straight = tmp_path / "record", recorded / "record"
    recording = f"--rollout.record={record}"
    # Step 2 is recorded already, and the run begins anew: it has no checkpoint yet.
    killed = _train(copy(), recording, fault=Fault("kill", "phase:scoring", step=2, rank=0))
    assert killed.code == -9, killed.text
    assert len(list(record.iterdir())) == 2
    # The run goes on from its checkpoint, with two of the groups of step 3.
    killed = _train(copy(), recording, fault=Fault("kill", "group:0/1", step=3, rank=0))
    assert killed.code == -9, killed.text
    assert len(list(record.iterdir())) == 2
    done = _train(copy(), recording)
    assert done.code == 0, done.text
    assert "resumed after step 2" in done.text
    assert "step 3, round 0: 2 of 4 groups were finished before" in done.text

    assert sorted(path.name for path in record.iterdir()) == [
        f"step_{step:06d}.parquet" for step in (1, 2, 3)
    ]
    for path in record.iterdir():
        columns = pq.read_table(path).to_pydict()
        rows = Counter(zip(columns["round"], columns["index"], strict=True))
        assert set(rows.values()) == {2}, "each group has its two responses once"
        assert columns == pq.read_table(straight / path.name).to_pydict()

    (tmp_path / "run").rename(tmp_path / "killed")
    replayed = _train(copy(), f"--rollout.replay={record}")
    assert replayed.code == 0, replayed.text
    assert_same_run(tmp_path / "run", recorded / "run")
    assert not list((tmp_path / "run").glob("rollouts/*"))


@pytest.mark.setting("rollout.replay")
def test_collection_names_step_and_prompt_of_another_recording(recorded, copy):
    done = _train(copy(), f"--rollout.replay={recorded / 'record'}", "--seed=4")
    assert done.code == 2, done.text
    assert "step 1, round 0, prompt " in done.text
    assert str(recorded / "record" / "step_000001.parquet") in done.text


def test_collection_refuses_the_recording_of_another_run(recorded, copy):
    before = sorted(path.read_bytes() for path in (recorded / "record").iterdir())
    done = _train(copy(), f"--rollout.record={recorded / 'record'}", "--seed=4")
    assert done.code == 2, done.text
    assert f"rollout.record '{recorded / 'record'}' holds step 1 of a run" in done.text
    assert "give another directory or remove it" in done.text
    assert sorted(path.read_bytes() for path in (recorded / "record").iterdir()) == before


def test_collection_of_two_ranks_equals_that_of_one(recorded, copy, tmp_path):
    done = run_task(copy(), None, f"--rollout.record={tmp_path / 'record'}", ranks=2)
    assert done.code == 0, done.text
    assert_same_steps(tmp_path / "run", recorded / "run")
    for path in sorted((recorded / "record").iterdir()):
        ours, theirs = (
            pq.read_table(p).to_pydict() for p in (tmp_path / "record" / path.name, path)
        )
        for name in ("round", "index", "group", "prompt_ids", "token_ids"):
            assert ours[name] == theirs[name], name


@pytest.mark.slow
def test_collection_replays_on_two_stages(recorded, copy, tmp_path):
    replay = f"--rollout.replay={recorded / 'record'}"
    done = run_task(copy(), None, replay, "--parallel.pipeline_model_parallel_size=2", ranks=2)
    assert done.code == 0, done.text
    assert_same_steps(tmp_path / "run", recorded / "run")


@pytest.mark.slow
def test_collection_masks_or_penalises_over_long_responses(recorded, copy, tmp_path):
    replay = f"--rollout.replay={recorded / 'record'}"
    masked = _train(copy(), replay, "--reward.overlong=mask")
    assert masked.code == 0, masked.text
    for line, unmasked in zip(*_steps(tmp_path / "run", recorded / "run"), strict=True):
        assert line["reward/overlong_masked"] == unmasked["response/truncated"] > 0
        assert line["reward/mean"] == unmasked["reward/mean"]
    (tmp_path / "run").rename(tmp_path / "masked")
    penalty = ["--reward.overlong_buffer=4", "--reward.overlong_penalty=0.5"]
    penalised = _train(copy(), replay, "--reward.overlong=penalize", *penalty)
    assert penalised.code == 0, penalised.text
    steps = zip(*_steps(tmp_path / "run", recorded / "run"), strict=True)
    for step, (line, unpunished) in enumerate(steps, start=1):
        columns = pq.read_table(recorded / "record" / f"step_{step:06d}.parquet").to_pydict()
        lengths = [
            len(tokens)
            for tokens, group in zip(columns["token_ids"], columns["group"], strict=True)
            if group is not None
        ]
        # Soft over-long punishment (DAPO, equation 13): a limit of 8, 4 tokens of them free.
        expected = sum(min(0, (4 - length) / 4) * 0.5 for length in lengths) / len(lengths)
        assert line["reward/overlong_penalty_mean"] == pytest.approx(expected)
        assert line["reward/mean"] == pytest.approx(unpunished["reward/mean"] + expected)


@pytest.mark.slow
def test_collection_replays_with_another_algorithm(recorded, copy, tmp_path):
    replay = f"--rollout.replay={recorded / 'record'}"
    done = _train(copy(), replay, "--algorithm.name=grpo", "--rollout.dynamic_sampling=false")
    assert done.code == 0, done.text
    theirs, ours = read_metrics(recorded / "run"), read_metrics(tmp_path / "run")
    for name in ("reward/mean", "response/length_mean", "rollout/groups_generated"):
        assert [line.get(name) for line in ours] == [line.get(name) for line in theirs]


@pytest.mark.slow
def test_collection_resumes_a_killed_rollout_to_the_same_bits(recorded, copy, tmp_path):
    recipe = copy()
    killed = _train(recipe, fault=Fault("kill", "group:0/1", step=2, rank=0))
    assert killed.code == -9, killed.text
    log = tmp_path / "run" / "rollouts" / "step_000002"
    assert len(list(log.glob("round_0_group_*.parquet"))) == 2
    (log / "round_0_group_00002.0a1b2c3d.parquet").write_bytes(b"PAR1 a torn end")
    refilled = next(
        line["step"] for line in read_metrics(recorded / "run") if line.get("rollout/refill_rounds")
    )
    if refilled > 1:
        killed = _train(recipe, fault=Fault("kill", "group:1/0", step=refilled, rank=0))
        assert killed.code == -9, killed.text
        assert "step 2, round 0: 2 of 4 groups were finished before" in killed.text
        assert "round_0_group_00002.0a1b2c3d.parquet, damaged; 1 such files" in killed.text
    done = _train(recipe)
    assert done.code == 0, done.text
    assert "groups were finished before" in done.text
    assert_same_run(tmp_path / "run", recorded / "run")


@pytest.mark.slow
def test_collection_plays_only_unfinished_episodes_again(tmp_path):
    command = [sys.executable, GAMES / "prepare.py", "--directory", tmp_path]
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    recipe = GAMES / "number_game.yaml"

    def train(name: str, fault: Fault | None = None) -> tuple[Ended, list[dict]]:
        settings = {
            "output_dir": tmp_path / name,
            "rollout.record": tmp_path / f"record of {name}",
            "model.path": tmp_path / "tiny",
            "data.train_files": f"[{tmp_path / 'number_game.jsonl'}]",
            "data.max_prompt_length": 80,
            "steps": 1,
        }
        given = [f"--{setting}={value}" for setting, value in settings.items()]
        ended = _train(recipe, *given, fault=fault)
        path = tmp_path / f"record of {name}" / "step_000001.parquet"
        return ended, pq.read_table(path).to_pylist() if path.exists() else []

    straight, expected = train("straight")
    assert straight.code == 0, straight.text
    killed, _ = train("killed", Fault("kill", "group:0/1", step=1, rank=0))
    assert killed.code == -9, killed.text
    done, rows = train("killed")
    assert done.code == 0, done.text
    assert "groups were finished before" in done.text
    for row, other in zip(rows, expected, strict=True):
        # Rounding of fp32, which depends on what is decoded beside a response.
        assert row.pop("log_probs") == pytest.approx(other.pop("log_probs"), abs=1e-5)
    assert rows == expected
