"""What `megatron-resrl launch` submits, on a real Slurm: from the first start to the last."""

from __future__ import annotations

import json

import pytest
from slurm.jobs import Stop

pytestmark = pytest.mark.slurm


def test_launch_requeues_at_the_time_limit_to_the_same_bits(trainings):
    stops = [Stop("phase:rollout", 2), Stop("phase:update", 3, rank=1, start=1)]
    job = trainings.launch(trainings.recipe("time_limit"), stops=stops)
    for stop in stops:
        job.await_stop(stop)
        job.run_out_of_time()
    ended = job.end()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "2"), job.output()
    assert "resumed after step 2" in job.output()
    assert "resumed after step 3" in job.output()
    assert "resource_tracker" not in job.output()  # Python's helper dies of a signal for all.
    trainings.assert_undisturbed(job.run)


def test_launch_survives_a_node_without_power_in_a_step(trainings, cluster):
    stop = Stop("phase:update", 3, rank=1)
    recipe = trainings.recipe("cut_in_a_step")
    job = trainings.launch(recipe, "--tasks=per_gpu", stops=[stop])
    job.await_stop(stop)
    second = job.nodes()[1]
    cluster.cut(second)
    ended = job.end()
    cluster.restore(second)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.output()
    assert second not in job.nodes()
    assert "resumed after step 2" in job.output()
    trainings.assert_undisturbed(job.run)


@pytest.mark.slow
def test_launch_in_the_folder_of_a_job_names_that_job_and_fails(trainings, cluster):
    stop = Stop("phase:update", 1)
    recipe = trainings.recipe("one_folder")
    first = trainings.launch(recipe, stops=[stop])
    first.await_stop(stop)
    second = trainings.launch(recipe)
    ended = second.end()
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), second.output()
    assert "is in use by process" in second.output()
    assert f", job {first.number}, since" in second.output()

    cluster.run("scancel", first.number)
    ended = first.end()
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0"), first.output()
    note = json.loads((first.run / "interrupted.json").read_text())
    assert (note["signal"], note["step"]) == ("SIGTERM", 1)
    third = trainings.launch(recipe)
    assert third.end()["JobState"] == "COMPLETED", third.output()
    trainings.assert_undisturbed(third.run)


def test_launch_chain_is_cancelled_when_its_first_job_fails(trainings):
    broken = {"function": f"{trainings.root}/task/reward.py:broken"}
    first = trainings.recipe("broken", reward=broken)
    second = trainings.recipe("after_broken", model={"path": str(first.with_suffix(""))})
    jobs = trainings.launch_chain([str(first), str(second)])
    assert jobs[0].end()["JobState"] == "FAILED", jobs[0].output()
    assert "KeyError: 'no such unit'" in jobs[0].output()
    assert jobs[1].end()["JobState"] == "CANCELLED"
    assert jobs[1].state()["Restarts"] == "0"
    assert not (jobs[1].run / "metrics.jsonl").exists()


def test_launch_refuses_what_the_cluster_has_not(trainings):
    recipe = str(trainings.recipe("refused"))
    done = trainings.ask(recipe, "--partition=mein", "--submit")
    assert done.returncode == 2
    assert "--partition = 'mein': there is no such partition; did you mean main?" in done.stderr
    done = trainings.ask(recipe, "--gpus_per_node=4", "--ranks_per_node=1", "--submit")
    assert done.returncode == 2
    assert "--gpus_per_node = 4: the nodes of partition main have 2 GPUs at most" in done.stderr
    assert "Traceback" not in done.stderr
