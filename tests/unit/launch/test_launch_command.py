"""`megatron-resrl launch`, from the command line to what Slurm gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from tiny_recipe import write_model, write_recipe

from megatron_resrl.cli import main
from megatron_resrl.errors import UNUSABLE
from megatron_resrl.launch.array import read_array
from megatron_resrl.launch.cluster import cluster_problems, read_partitions
from megatron_resrl.launch.limits import limit_problems, save_before, time_budget
from megatron_resrl.launch.options import LaunchOptions
from megatron_resrl.launch.slurm_time import seconds_of, time_limit

SINFO = """\
main*|1-00:00:00|4|gpu:h100:8(S:0-1)
small|2:00:00|2|gpu:a100:4
small|2:00:00|1|gpu:h100:8
cpu|infinite|3|(null)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model."""
    return str(write_model(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture
def write(tmp_path: Path, model: str):
    """Writes a recipe and returns its file."""

    def write(name: str, **changes) -> str:
        settings = yaml.safe_load(write_recipe(tmp_path, Path(model)).read_text())
        settings["output_dir"] = str(tmp_path / name)
        settings["parallel"] = {"tensor_model_parallel_size": 2}
        settings["rollout"]["prompts_per_step"] = 8
        for key, value in changes.items():
            settings[key] = settings.get(key, {}) | value if isinstance(value, dict) else value
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return str(path)

    return write


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs of Slurm that note how they are called; returns the file with their calls."""
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    (tools / "sinfo").write_text(f"#!/bin/bash\ncat <<'E'\n{SINFO}E\n")
    # Jobs are numbered from 100.
    number = f"n=$((100 + $(wc -l < {calls})))"
    (tools / "sbatch").write_text(f'#!/bin/bash\n{number}; echo "$*" >> {calls}; echo "$n;here"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    calls.touch()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return calls


def launch(*arguments: str) -> int:
    return main(["launch", *arguments])


def test_launch_prints_a_script_with_time_for_saving(write, capsys) -> None:
    recipe = write("run", data={"train_files": ["none.jsonl"]})
    assert launch(recipe, "--time=12:00:00", "--nodes", "2", "--steps=7") == 0
    said = capsys.readouterr()
    first, second, *rest = said.out.splitlines()
    assert first == "#!/bin/bash"
    assert second == f"# megatron-resrl launch {recipe} --time=12:00:00 --nodes 2 --steps=7"
    assert "#SBATCH --nodes=2" in rest
    assert f"recipe=({recipe} --time_budget 43140 --steps=7)" in rest
    assert "export CUDA_DEVICE_MAX_CONNECTIONS=1" in said.out  # Tensor parallelism.
    # The forecast of `plan` knows that steps are short; without it 600 s are kept.
    assert "#SBATCH --signal=B:USR1@300" in rest
    # What this machine lacks is said, and refused only where the job is submitted from it.
    assert "data.train_files = 'none.jsonl': there is no such file" in said.err
    assert launch(recipe, "--submit") == UNUSABLE


def test_launch_refuses_a_limit_shorter_than_a_step(write, capsys) -> None:
    assert launch(write("run"), "--time=00:05:00") == UNUSABLE
    said = capsys.readouterr().err
    assert "--time = '00:05:00': too short for the start (30 s), a step (" in said
    assert "give at least 00:" in said


def test_launch_refuses_what_is_wrong_with_the_recipe(write, capsys) -> None:
    recipe = write("run", parallel={"tensor_model_parallel_size": 3})
    assert launch(recipe) == UNUSABLE
    assert "world size = 8: not divisible by 3" in capsys.readouterr().err
    vllm = {"rollout": {"engine": "vllm", "placement": "disaggregated"}, "vllm": {"nodes": 2}}
    assert launch(write("served", **vllm), "--nodes=2") == UNUSABLE
    assert "vllm.nodes = 2: the job has 2 nodes (--nodes), of which none" in capsys.readouterr().err
    assert launch(write("served", **vllm), "--nodes=3") == 0
    script = capsys.readouterr().out
    assert "trainers=$((SLURM_JOB_NUM_NODES - 2))" in script
    assert "export MEGATRON_RESRL_STORE=$MASTER_ADDR:" in script


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--nodse=2"],
            "--nodse = '2': neither an option of launch nor a setting of a recipe;",
        ),
        (["--nodse=2"], "did you mean --nodes?"),
        (["--outputdir=x"], "did you mean --output_dir?"),
        (["--optimizer.lrr=1"], "did you mean optimizer.lr?"),
        (["--nodes=two"], "--nodes: 'two' is not a whole number of at least 1"),
        (["--time=4h"], "--time: '4h': a time limit is minutes, minutes:seconds"),
        (["--after=x"], "--after: 'x' is not the number of a job"),
        (["--tasks=per_rank"], "--tasks: invalid choice: 'per_rank'"),
        (["--array=none.txt"], "--array = 'none.txt': neither numbers nor a file that can be read"),
        (["--array=0-4%x"], "what follows % is not a number"),
    ],
)
def test_launch_names_options_that_cannot_be_used(write, capsys, arguments, words) -> None:
    assert launch(write("run"), *arguments) == UNUSABLE
    said = capsys.readouterr()
    assert (words in said.err, said.out) == (True, ""), said.err


def test_launch_without_slurm_says_where_to_submit(write, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch(write("run"), "--container=x.sqsh", "--submit") == UNUSABLE
    said = capsys.readouterr().err
    assert "there is no Slurm on this machine (sbatch and sinfo are not in PATH)" in said


def test_launch_submits_a_chain_that_keeps_its_recipes(write, slurm, tmp_path, capsys) -> None:
    first = write("first")
    second = write("second", model={"path": str(tmp_path / "first")})
    chain = (first, f"eval:{second}", "--container=x.sqsh", "--after=7")
    assert launch(*chain, "--submit") == 0
    said = capsys.readouterr()
    assert "its model comes from train, and it is checked when its job starts" in said.err
    lines = said.out.splitlines()
    assert [line.partition(" (")[0] for line in lines] == ["100: first", "101: second"]
    calls = slurm.read_text().splitlines()
    assert calls[0].startswith("--parsable ")
    assert "--dependency=afterok:100 --kill-on-invalid-dep=yes" in calls[1]
    scripts = [Path(call.split()[-1]) for call in calls]
    assert "#SBATCH --dependency=afterok:7" in scripts[0].read_text()
    assert "#SBATCH --dependency" not in scripts[1].read_text()
    assert "-m megatron_resrl eval " in scripts[1].read_text()
    # The job runs the recipe as it was, whatever becomes of the file until it starts.
    kept = scripts[0].with_name("recipe.yaml")
    assert f"\nrecipe=({kept})\n" in scripts[0].read_text()
    assert kept.read_text() == Path(first).read_text()
    assert f"#SBATCH --output={tmp_path}/first/slurm/%x-%j.log" in scripts[0].read_text()
    assert launch(first, "--container=x.sqsh", "--submit") == 0  # In the same second, perhaps.
    assert len(list((tmp_path / "first" / "slurm").glob("train-*/job.sbatch"))) == 2


def test_launch_has_no_array_of_chains(write, capsys) -> None:
    assert launch(write("a"), write("b"), "--array=0-1") == UNUSABLE
    assert "a chain of 2 recipes has no array" in capsys.readouterr().err


def test_launch_quotes_what_slurm_says(write, slurm, tmp_path, capsys) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text("#!/bin/bash\necho 'sbatch: error: Invalid account' >&2; exit 1\n")
    assert launch(write("run"), "--container=x.sqsh", "--submit") == UNUSABLE
    assert "sbatch refuses it (Invalid account)" in capsys.readouterr().err
    assert launch(write("run"), "--container=x.sqsh", "--partition=smalll", "--submit") == UNUSABLE
    assert "--partition = 'smalll': there is no such partition; did you mean small?" in (
        capsys.readouterr().err
    )


def test_launch_notes_a_folder_that_nodes_do_not_share(write, capsys, tmp_path) -> None:
    recipe = write("run", output_dir="/tmp/of_a_node")
    assert launch(recipe, "--nodes=2") == 0
    assert "output_dir = '/tmp/of_a_node': on most clusters each node" in capsys.readouterr().err
    assert launch(recipe, "--nodes=1") == 0
    assert "on most clusters" not in capsys.readouterr().err


def test_cluster_problems_name_what_there_is() -> None:
    kinds = read_partitions(SINFO)

    def problems(**options) -> str:
        return "\n".join(map(str, cluster_problems(LaunchOptions(**options), kinds)))

    assert problems() == problems(nodes=4, time="1-00:00:00") == ""
    assert problems(partition="cpu", gpus_per_node=0, time="9-00") == ""
    assert "partitions are main, small, cpu" in problems(partition="x")
    assert "partition main has 4 nodes" in problems(nodes=5)
    assert "the nodes of partition cpu have 0 GPUs at most" in problems(partition="cpu")
    small = {"partition": "small", "nodes": 2}
    assert "has not so many nodes with 8 GPUs" in problems(**small)
    assert "GPUs of several types (a100, h100); choose one" in problems(**small, gpus_per_node=4)
    named = ("--gpus-per-node=a100:4",)
    assert problems(**small, gpus_per_node=4, sbatch=named) == ""
    assert "jobs of partition main end after 1-00:00:00" in problems(time="1-00:01:00")
    undecided = [kind for kind in kinds if not kind.is_default]
    assert "no default partition" in str(next(cluster_problems(LaunchOptions(), undecided)))


def test_array_reads_seeds_and_lines_of_settings(tmp_path) -> None:
    assert read_array("0-4,7%2").settings == ()
    sweep = tmp_path / "sweep.txt"
    sweep.write_text("# rates\n--optimizer.lr 1e-6\n\n--optimizer.lr 2e-6 --data.x '[a b]'\n")
    found = read_array(f"{sweep}%1")
    assert found.indices == "0-1%1"
    assert found.settings[1] == ("--optimizer.lr", "2e-6", "--data.x", "[a b]")


def test_time_limits_are_read_as_slurm_does() -> None:
    limits = {"90": 5400, "1:30": 90, "04:00:00": 14400, "1-12": 129600, "2-0:30:5": 174605}
    assert {text: seconds_of(text) for text in limits} == limits
    for text in ("", "x", "1:2:3:4", "0", "-1"):
        with pytest.raises(ValueError, match="time limit"):
            seconds_of(text)
    assert (time_limit(61), time_limit(90000)) == ("00:02:00", "1-01:00:00")


def test_limits_leave_room_for_a_step_and_a_save() -> None:
    assert save_before(None, 50.0) == 600
    assert save_before(200.0, 50.0) == 540
    assert save_before(1.0, 1.0) == 300
    assert time_budget("04:00:00") == 14340
    assert not list(limit_problems("00:10:00", 300, 60.0))
    assert not list(limit_problems(None, 300, 60.0))
    (short,) = limit_problems("00:06:00", 300, 60.0)
    assert short.fix == "give at least 00:07:00"
    (early,) = limit_problems("04:00:00", 100, 147.0)
    assert str(early).startswith("--save_before = 100: a step takes 147 s by `plan`")
