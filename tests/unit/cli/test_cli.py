"""The commands, as a user starts them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_recipe import write_model, write_recipe

from megatron_resrl import __version__
from megatron_resrl.cli import COMMANDS
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.recipe_schema import schema_of
from megatron_resrl.config.schema import Recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli")
    return write_recipe(directory, write_model(directory / "model"))


def start(
    *arguments: object, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "megatron_resrl", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env=dict(os.environ, OMP_NUM_THREADS="1", **(environment or {})),
        cwd=Path(__file__).resolve().parents[3],
    )


def test_check_prints_the_resolved_recipe(recipe: Path, tmp_path: Path) -> None:
    result = start("check", recipe, "--optimizer.lr=3e-5")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "warm-up is longer than the run's 2 optimizer steps" in result.stdout
    assert result.stdout.endswith("# no problems found for 1 rank\n")
    written = tmp_path / "resolved.yaml"
    written.write_text(result.stdout)
    assert load_recipe(str(written)) == load_recipe(str(recipe), ["--optimizer.lr=3e-5"])


def test_check_reports_all_problems_and_prints_the_recipe(recipe: Path) -> None:
    result = start(
        "check",
        recipe,
        "--world_size",
        "4",
        "--parallel.tensor_model_parallel_size=3",
        "--rollout.group_size",
        "1",
        "--optimizer.lrr=1",
        "--steps=many",
        "--data.train_files=[none.jsonl]",
        "--model.megatron.init_method_sdt=1",
    )
    assert result.returncode == 1
    assert "steps: 100\n" in result.stdout
    lines = result.stderr.splitlines()
    assert lines[0] == f"{len(lines) - 3} problems in the recipe:"
    assert lines[-2] == "1 thing missing on this machine:"
    for words in (
        "world size = 4: not divisible by 3",
        "rollout.group_size = 1: out of range; it must be at least 2",
        "did you mean optimizer.lr?",
        "steps = 'many': wrong type",
        "none.jsonl",
        "did you mean init_method_std?",
    ):
        assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert "Warning" not in result.stderr


def test_check_takes_the_number_of_ranks_from_the_launcher(recipe: Path) -> None:
    result = start("check", recipe, environment={"WORLD_SIZE": "3"})
    assert result.returncode == 1
    assert "3 data-parallel copies" in result.stderr
    result = start("check", recipe, "--world_size=two")
    assert (result.returncode, result.stdout) == (1, "")
    assert "--world_size = 'two'" in result.stderr


@pytest.mark.parametrize("command", ["train", "eval"])
def test_train_ends_without_traceback_on_a_wrong_recipe(recipe: Path, command: str) -> None:
    result = start(command, recipe, "--model.path=nowhere", "--evaluation.files=[x.jsonl]")
    assert result.returncode == 2
    assert "model.path = 'nowhere': there is no such directory" in result.stderr
    assert "evaluation.files = 'x.jsonl': there is no such file" in result.stderr
    assert "Traceback" not in result.stderr


def test_train_names_a_missing_recipe(tmp_path: Path) -> None:
    result = start("train", tmp_path / "none.yaml")
    assert result.returncode == 2
    assert "there is no such file" in result.stderr
    assert "Traceback" not in result.stderr


def test_train_prints_problems_on_one_rank_per_node(recipe: Path) -> None:
    bad = ("train", recipe, "--steps=0")
    second = start(*bad, environment={"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"})
    assert (second.returncode, second.stderr) == (2, "")
    other_node = start(*bad, environment={"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4"})
    assert other_node.returncode == 2
    assert re.match(
        r"rank 2 \(host .+, local rank 0\): 1 problem in the recipe:", other_node.stderr
    )


def test_check_lists_apart_what_this_machine_lacks(recipe: Path) -> None:
    cuda = (
        *("check", recipe, "--world_size=4"),
        *("--precision.fp8=hybrid", "--rollout.engine=vllm", "--vllm.python=/nowhere/python"),
        *("--rollout.placement=disaggregated", "--vllm.devices=['8']"),
    )
    here = start(*cuda, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert here.returncode == 1
    assert "in the recipe" not in here.stderr
    for words in ("CUDA is absent", "/nowhere/python"):
        assert words in here.stderr.partition("missing on this machine:")[2]
    there = start(*cuda, "--for", "cuda", "--evaluation.files=[only_there.jsonl]")
    assert there.returncode == 0, there.stderr
    assert there.stderr.startswith("1 thing missing on this machine:")
    assert "only_there.jsonl" in there.stderr
    assert there.stdout.endswith("# no problems found for 4 ranks with CUDA\n")


def test_check_has_one_exit_status_for_all_problems(recipe: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [")
    for asked in ((broken,), (tmp_path / "none.yaml",), (recipe, "--for", "tpu")):
        result = start("check", *asked)
        assert result.returncode == 1
        assert "1 problem in the recipe" in result.stderr


@pytest.mark.parametrize("command", ["train", "eval", "check"])
def test_cli_help_of_a_command_lists_every_setting(command: str) -> None:
    result = start(command, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: megatron-resrl {command} [RECIPE.yaml]")
    for setting in schema_of(Recipe).settings:
        assert f"--{setting} " in result.stdout
    text = " ".join(result.stdout.split())
    assert "Responses per prompt, at least 2 (paper: 4)." in text
    assert (
        "correction - For responses drawn from another distribution than the trainer's: by o"
        in text
    )
    assert "parallel - How ranks share the model:" in text
    assert "Options of the algorithm itself, which `megatron-resrl algorithms` lists." in text


def test_main_prints_help_and_version() -> None:
    shown = start("--help")
    assert shown.returncode == 0
    for command in ("train", "eval", "check"):
        assert f"\n  {command} " in shown.stdout
    assert start("--version").stdout == f"megatron-resrl {__version__}\n"


def test_main_refuses_unknown_commands() -> None:
    result = start("trian")
    assert result.returncode == 2
    assert f"unknown command 'trian'; commands are {', '.join(COMMANDS)}\n" == result.stderr
