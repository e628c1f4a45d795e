"""What happens to jobs on a cluster, and what their requeues make of it: each takes a minute."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from slurm.cluster import NODES
from slurm.jobs import Stop
from tiny_corpus import write_pretraining
from tiny_task import read_metrics

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_launch_saves_when_another_job_preempts_its_own(trainings, cluster):
    stop = Stop("phase:update", 3)
    job = trainings.launch(trainings.recipe("preempted"), "--partition=spare", stops=[stop])
    job.await_stop(stop)
    wanted = [f"--nodes={len(NODES)}", "--exclusive", "--partition=main"]
    done = cluster.run("sbatch", "--parsable", *wanted, "--output=/dev/null", "--wrap=true")
    assert cluster.wait(done.stdout.strip())["JobState"] == "COMPLETED"
    ended = job.end()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.output()
    assert "resumed after step 3" in job.output()
    trainings.assert_undisturbed(job.run)


@pytest.mark.parametrize(
    ("stop", "resumed_after"),
    [
        (Stop("write:step_000002.incomplete/__1_0.distcp", None, rank=1), 0),
        (Stop("rename:step_000004", None), 2),
        (Stop("phase:scoring", 3), 2),
    ],
    ids=["a shard of the second node", "the name of a checkpoint", "the node of the script"],
)
def test_launch_survives_a_node_without_power(stop, resumed_after, trainings, cluster):
    recipe = trainings.recipe(f"cut_{stop.rank}_{resumed_after}_{stop.step}")
    job = trainings.launch(recipe, stops=[stop])
    job.await_stop(stop)
    node = job.nodes()[stop.rank]
    cluster.cut(node)
    ended = job.end()
    cluster.restore(node)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.output()
    assert (f"resumed after step {resumed_after}" in job.output()) == (resumed_after > 0)
    trainings.assert_undisturbed(job.run)


def test_launch_leaves_a_node_out_whose_rank_was_lost(trainings):
    stop = Stop("phase:update", 3, rank=1, action="kill")
    job = trainings.launch(trainings.recipe("killed"), stops=[stop])
    job.await_stop(stop)
    node = job.nodes()[1]
    ended = job.end()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.output()
    assert ended["ExcNodeList"] == node
    assert node not in job.nodes()
    trainings.assert_undisturbed(job.run)


@pytest.mark.parametrize("tasks", ["per_node", "per_gpu"])
def test_launch_asks_again_where_a_rank_was_still_starting(tasks, trainings, cluster):
    # Handlers come after torch; without a second signal the rank would stand at step 3 for ever.
    stops = [Stop("import:torch", None, action="go on"), Stop("phase:update", 3)]
    recipe = trainings.recipe(f"starting_{tasks}")
    job = trainings.launch(recipe, f"--tasks={tasks}", stops=stops)
    job.await_stop(stops[0])
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    ended = job.end()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.output()
    trainings.assert_undisturbed(job.run)


def test_launch_array_is_one_run_per_seed(trainings):
    recipe = trainings.recipe("it's an array")
    job = trainings.launch(recipe, "--array=3,4")
    for seed in (3, 4):
        ended = trainings.cluster.wait(f"{job.number}_{seed}")
        assert ended["JobState"] == "COMPLETED", job.output()
        trainings.assert_undisturbed(job.run / f"seed_{seed}", seed=seed)


def test_launch_trains_the_recipe_as_it_was_submitted(trainings, cluster):
    recipe = trainings.recipe("changed")
    job = trainings.launch(recipe, "--sbatch=--hold")
    trainings.recipe("changed", steps=1, optimizer={"lr": 1.0})
    cluster.run("scontrol", "release", job.number)
    assert job.end()["JobState"] == "COMPLETED", job.output()
    trainings.assert_undisturbed(job.run)


def test_launch_stops_at_a_full_disk_and_keeps_the_checkpoint(trainings, cluster):
    stop = Stop("phase:update", 3)
    recipe = trainings.recipe("full_disk", output_dir=cluster.disk / "run")
    job = trainings.launch(recipe, "--requeue=1", stops=[stop])
    job.await_stop(stop)
    checkpoint = trainings.undisturbed() / "checkpoints" / "step_000004"
    one = sum(file.stat().st_size for file in checkpoint.rglob("*"))
    disk = os.statvfs(cluster.outside(cluster.disk))
    filler = cluster.disk / "filler"
    cluster.run("fallocate", "-l", disk.f_bavail * disk.f_bsize - one // 2, filler)
    job.approach_limit()
    ended = job.end()
    assert ended["JobState"] == "FAILED", job.output()
    assert "no space left" in job.output()
    assert [each.name for each in (job.run / "checkpoints").glob("step_*[0-9]")] == ["step_000002"]

    cluster.run("rm", filler)
    again = trainings.launch(recipe)
    assert again.end()["JobState"] == "COMPLETED", again.output()
    assert "resumed after step 2" in again.output()
    trainings.assert_undisturbed(again.run)


def test_launch_chain_goes_from_token_files_to_an_evaluation(trainings):
    folder = trainings.root / "chain"
    folder.mkdir()
    pretraining = write_pretraining(folder, output_dir=str(folder / "pretrained"), steps=2)
    tuning = _tuning(folder)
    training = trainings.recipe("chain/train", steps=1, model={"path": str(folder / "tuned")})
    held_out = {"files": [str(trainings.root / "task" / "heldout.jsonl")], "samples_per_prompt": 1}
    evaluation = trainings.recipe(
        "chain/eval", model={"path": str(folder / "train")}, evaluation=held_out
    )
    chain = {"pretrain": pretraining, "sft": tuning, "train": training, "eval": evaluation}
    jobs = trainings.launch_chain([f"{stage}:{recipe}" for stage, recipe in chain.items()])
    for job in jobs:
        assert job.end()["JobState"] == "COMPLETED", job.output()
    assert [line["step"] for line in read_metrics(folder / "train")] == [0, 1]
    assert "heldout" in (folder / "eval" / "evaluation.json").read_text()


def _tuning(folder: Path) -> Path:
    """A recipe of fine-tuning on what was pretrained."""
    rows = [
        {"messages": [_turn("user", str(n)), _turn("assistant", str(n + 1))]} for n in range(3, 19)
    ]
    conversations = folder / "conversations.jsonl"
    conversations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "output_dir": str(folder / "tuned"),
        "epochs": 1,
        "model": {"path": str(folder / "pretrained")},
        "precision": {"params_dtype": "fp32"},
        "data": {"train_files": str(conversations), "max_length": 32},
        "batch": {"global_batch_size": 4},
        "logging": {"tensorboard": False, "progress_bar": False},
    }
    recipe = folder / "tuning.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    return recipe


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
