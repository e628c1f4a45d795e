"""What a run leaves in its folder, and who may go on there."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from ranks import ended_ranks, run_command
from tiny_recipe import change_json
from tiny_task import read_metrics, write_task

from megatron_resrl.checkpoint.checksums import write_sums
from megatron_resrl.checkpoint.inspection import inspect_checkpoint
from megatron_resrl.config.load import load_recipe
from megatron_resrl.platform.run_files import LOCK
from megatron_resrl.policy.sizes import checkpoint_bytes
from megatron_resrl.training import run_lock
from megatron_resrl.weights.torch_dist_files import read_index


def train(recipe: Path, *settings: str, ranks: int = 1, **environment: str) -> tuple:
    """Exit statuses and what was said."""
    codes, out, err = ended_ranks(
        *("-m megatron_resrl", ranks, "train", recipe, *settings),
        patient=True,
        environment=environment,
    )
    return codes, out + err


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two steps that has been run."""
    directory = tmp_path_factory.mktemp("task")
    recipe = write_task(directory, steps=2, evaluation__files=[], algorithm__name="grpo")
    codes, said = train(recipe)
    assert codes == [0], said
    return recipe


@pytest.fixture
def copy(task: Path, tmp_path: Path) -> Path:
    """The same recipe with a folder of its own in the same state."""
    shutil.copytree(task.parent, tmp_path, dirs_exist_ok=True)
    text = task.read_text().replace(str(task.parent), str(tmp_path))
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


def test_run_folder_of_a_finished_run_ends_with_a_note(task):
    before = (task.parent / "run" / "metrics.jsonl").read_bytes()
    codes, said = train(task)
    assert codes == [0]
    assert "all 2 steps are done" in said
    assert "raise steps or choose another output_dir" in said
    assert "resumed" not in said
    assert (task.parent / "run" / "metrics.jsonl").read_bytes() == before
    assert not (task.parent / "run" / "run.lock").exists()


def test_run_folder_with_fewer_steps_exports_once(copy):
    (copy.parent / "run" / "finished.json").unlink()
    codes, said = train(copy, "--steps=1")
    assert codes == [0]
    assert "resumed after step 2" in said
    codes, said = train(copy, "--steps=1")
    assert codes == [0]
    assert "all 1 steps are done" in said


CHANGES = {
    "algorithm": (["--algorithm.name=nsr"], "algorithm.name: 'grpo' in the checkpoint, 'nsr' now"),
    "group": (["--rollout.group_size=4"], "rollout.group_size: 6 in the checkpoint, 4 now"),
    "seed": (["--seed=4"], "seed: 3 in the checkpoint, 4 now"),
    "reward": (["--reward.function=integer"], "reward: function: even of reward.py, digest"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_run_folder_of_another_run_is_not_continued(task, change):
    settings, named = CHANGES[change]
    codes, said = train(task, "--steps=3", *settings)
    assert codes == [2]
    assert named in said
    assert "Traceback" not in said
    for way in ("choose another output_dir", "checkpoint.resume to changed"):
        assert way in said


@pytest.mark.setting("checkpoint.resume")
def test_run_folder_notices_other_questions_model_and_reward(copy):
    run = copy.parent
    questions = (run / "train.jsonl").read_text().replace('"3 4"', '"9 9"')
    (run / "train.jsonl").write_text(questions)
    change_json(run / "model" / "config.json", rope_theta=77.0)
    reward = run / "reward.py"
    reward.write_text(reward.read_text() + "\n# other\n")
    codes, said = train(copy, "--steps=3")
    assert codes == [2]
    for what in ("data: questions", "model: config.json", "reward: function"):
        assert f"{what}: " in said
    assert "model: weights" not in said

    codes, said = train(copy, "--steps=3", "--seed=4", "--checkpoint.resume=changed")
    assert codes == [0], said
    assert "the training data are shuffled anew" in said
    assert "resumed after step 2" in said
    assert [line["step"] for line in read_metrics(run / "run")] == [0, 1, 2, 3]
    state = json.loads((run / "run/checkpoints/step_000003/trainer.json").read_text())
    assert state["sampler"]["consumed"] == 4
    assert yaml.safe_load((run / "run" / "recipe.yaml").read_text())["seed"] == 4
    assert yaml.safe_load((run / "run" / "recipe.1.yaml").read_text())["seed"] == 3
    # The checkpoint is of the new settings.
    codes, said = train(copy, "--steps=3", "--seed=4")
    assert codes == [0]
    assert "all 3 steps are done" in said


def test_resume_never_leaves_nothing_for_a_restart(copy):
    run = copy.parent / "run"
    over = ("--checkpoint.resume=never", "--seed=4")
    codes, said = train(copy, *over, "--steps=1")
    assert codes == [0], said
    assert "set checkpoint.resume to auto before" in said.lower()
    for name in ("checkpoints.1", "hf.1", "metrics.1.jsonl", "samples.1.jsonl", "recipe.1.yaml"):
        assert (run / name).exists(), name
    assert (run / "checkpoints.1" / "step_000002").is_dir()
    assert [path.name for path in (run / "checkpoints").glob("step_*")] == ["step_000001"]
    assert [line["step"] for line in read_metrics(run)] == [0, 1]

    # Started again by Slurm, the job goes on with its own checkpoint.
    codes, said = train(copy, *over, "--steps=2", SLURM_RESTART_COUNT="1")
    assert codes == [0], said
    assert "the job continues its own run" in said
    assert "resumed after step 1" in said
    assert not (run / "checkpoints.2").exists()

    for path in (run / "checkpoints").glob("step_*"):
        (path / "common.pt").write_bytes(b"")
    codes, said = train(copy, "--seed=4", "--steps=3")
    assert codes == [2]
    assert "every checkpoint in" in said


def lock(run: Path) -> str:
    """Makes the folder this process's, which goes on."""
    run.mkdir(exist_ok=True)
    text = json.dumps(dataclasses.asdict(run_lock.this_process()))
    (run / LOCK).write_text(text)
    return text


def test_run_folder_in_use_is_left_as_it_is(copy):
    run = copy.parent / "run"
    lock(run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    codes, said = train(copy, "--steps=3", ranks=2)
    assert codes == [2, 2]
    host = socket.gethostname()
    assert said.count(f"is in use by process {os.getpid()} on host {host}, since ") == 1
    assert "Traceback" not in said
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_run_folder_is_not_disturbed_by_an_evaluation(copy):
    run = copy.parent / "run"
    text = lock(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    files = f"--evaluation.files=[{copy.parent / 'heldout.jsonl'}]"
    done = run_command("eval", copy, f"--model.path={run / 'hf'}", files)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert (run / LOCK).read_text() == text


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many bytes."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


FULL = {"at the start": 0, "in the first checkpoint": 0, "in the export": 1}


@pytest.mark.parametrize("when", FULL)
def test_run_folder_on_a_full_disk_is_named(task, disk, when):
    checkpoint = task.parent / "run" / "checkpoints" / "step_000002"
    # Tensors alone; how many bytes their files add is not predicted.
    recipe = load_recipe(str(task))
    predicted = checkpoint_bytes(recipe.model, recipe.parallel, recipe.precision, 1)
    parts = inspect_checkpoint(checkpoint).parts
    # Of the four tensors of a weight, one rank's fp32 weights and masters are the same.
    assert predicted == sum(part.bytes for part in parts.values()) * 3 // 4
    files = [file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()]
    blocks = sum(-(-size // 4096) * 4096 for size in files)
    room = {
        "at the start": predicted - 4096,
        "in the first checkpoint": (predicted + sum(files)) // 2,
        # And metrics, samples, recipe, lock, a rollout, a marker, history and status.
        "in the export": blocks + 16 * 4096,
    }
    place = disk(room[when])
    codes, said = train(task, "--steps=1", f"--output_dir={place / 'run'}")
    assert codes == [2], said
    assert "no space left" in said
    assert str(place) in said
    assert " free, needs " in said
    assert "Traceback" not in said
    assert len(list(place.glob("run/checkpoints/step_*"))) == FULL[when]
    assert not list(place.glob("run/run.lock"))


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("place", ["the index", "the random states"])
def test_run_folder_refuses_a_checkpoint_that_runs_code(copy, place):
    checkpoint = copy.parent / "run" / "checkpoints" / "step_000002"
    index = checkpoint / ".metadata"
    metadata = read_index(checkpoint)
    if place == "the index":
        metadata.planner_data = Evil(copy.parent / "made")
    else:
        (key, info) = next(
            i for i in metadata.storage_data.items() if i[0].fqn.startswith("random")
        )
        content = io.BytesIO()
        torch.save([Evil(copy.parent / "made")], content)
        shard = checkpoint / info.relative_path
        metadata.storage_data[key] = dataclasses.replace(
            info, offset=shard.stat().st_size, length=len(content.getvalue())
        )
        with shard.open("ab") as file:
            file.write(content.getvalue())
    index.write_bytes(pickle.dumps(metadata))
    (checkpoint / "sizes.json").unlink()
    (checkpoint / "SHA256SUMS").unlink()
    write_sums(checkpoint, {})
    codes, said = train(copy, "--steps=3")
    assert codes == [2], said
    assert f"would run {os.mkdir.__module__}.mkdir" in said
    assert not (copy.parent / "made").exists()


OTHERS = {
    "data.train_files": ("more.jsonl", "data: questions is '17, digest"),
    "rollout.group_size": ("4", "rollout.group_size is 4 on rank 1"),
    "seed": ("5", "seed is 5 on rank 1"),
    "algorithm.name": ("nsr", "algorithm.name is 'nsr' on rank 1"),
    "model.path": ("other", "model: weights is "),
    "evaluation.files": ("more.jsonl", "evaluation: questions of more is '17, digest"),
    "reward.function": ("integer", "reward: function is 'integer' on rank 1"),
}


@pytest.mark.parametrize("setting", OTHERS)
def test_run_folder_refuses_ranks_that_see_another_run(task, setting):
    value, named = OTHERS[setting]
    place = task.parent / value
    if value == "more.jsonl":
        place.write_text((task.parent / "train.jsonl").read_text() + '{"prompt": "3", "answer": 4}')
        value = f"[{place}]"
    elif value == "other" and not place.exists():
        shutil.copytree(task.parent / "model", place)
        weights = bytearray((place / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (place / "model.safetensors").write_bytes(weights)
    value = str(place) if value == "other" else value
    script = Path(__file__).with_name("ranks_of_two_runs.py")
    codes, _, said = ended_ranks(script, 2, task, f"--{setting}={value}", patient=True)
    assert codes == [2, 2], said
    assert named in said
    assert f"on rank 0 (host {socket.gethostname()}, local rank 0)" in said
    assert "Traceback" not in said


def test_ranks_may_have_the_same_files_in_different_places(task, tmp_path):
    shutil.copytree(task.parent / "model", tmp_path / "model")
    script = Path(__file__).with_name("ranks_of_two_runs.py")
    codes, _, said = ended_ranks(
        script, 2, task, f"--model.path={tmp_path / 'model'}", patient=True
    )
    assert codes == [0, 0], said
    assert "all 2 steps are done" in said
