"""examples/pretrain_to_rl/run.sh from the corpus to the table, with two steps of each stage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_resrl.checks.recipe import check_recipe
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.stages import STAGES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMALLER = {
    "pretrain": {"steps": 2, "evaluation": {"sequences": 4}, "data": {"sequence_length": 64}},
    "sft": {"epochs": 0.02, "evaluation": {"max_conversations": 4}},
    "train": {
        "steps": 2,
        "rollout": {"prompts_per_step": 4, "group_size": 4, "max_response_length": 8},
        "evaluation": {"max_prompts": 4},
    },
}
CONFIG = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
CONFIG |= {"num_attention_heads": 4, "num_key_value_heads": 2}


def copy_of_example(folder: Path) -> Path:
    """A checkout whose example has smaller files, steps and model, and an environment that is
    installed: the tests' own."""
    for name in ("examples", "tools"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    example = folder / "examples/pretrain_to_rl"
    for name, changes in SMALLER.items():
        recipe = yaml.safe_load((example / f"{name}.yaml").read_text())
        for section, values in changes.items():
            recipe[section] = recipe[section] | values if isinstance(values, dict) else values
        (example / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    config = json.loads((example / "config.json").read_text())
    (example / "config.json").write_text(json.dumps(config | CONFIG))
    script = (example / "run.sh").read_text()
    assert "--documents 100000" in script
    (example / "run.sh").write_text(script.replace("--documents 100000", "--documents 2000"))
    return folder


def installed(checkout: Path) -> Path:
    """An environment as tools/install.sh leaves it."""
    environment = checkout / ".venv"
    (environment / "bin").mkdir(parents=True)
    python = environment / "bin/python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    stamp = 'echo "$(cksum pyproject.toml constraints.txt) $PWD" >.venv/installed-$1'
    command = ["bash", "-c", stamp, "_", "quickstart-sentencepiece"]
    subprocess.run(command, cwd=checkout, check=True)
    return environment


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which the example has run once."""
    pytest.importorskip("matplotlib", reason="the quickstart extra is not installed")
    pytest.importorskip("sentencepiece", reason="the sentencepiece extra is not installed")
    folder = copy_of_example(tmp_path_factory.mktemp("checkout"))
    installed(folder)
    done = run_example(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def run_example(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(folder / "examples/pretrain_to_rl/run.sh"), *settings],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_example_runs_from_corpus_to_table(checkout):
    outputs = checkout / "outputs/pretrain_to_rl"
    lines = (outputs / "stages.md").read_text().splitlines()
    assert lines[2].startswith("| after | pass@1 | pass@2 | pass@4 |")
    rows = [line.split("|")[1].strip() for line in lines[4:]]
    assert rows == ["pretraining", "fine-tuning", "reinforcement learning: resrl"]
    assert (outputs / "stages.png").read_bytes().startswith(b"\x89PNG")


def test_example_stages_begin_with_the_stage_before(checkout):
    for stage, before in (("sft", "pretrain"), ("resrl", "sft")):
        recipe = yaml.safe_load(
            (checkout / f"outputs/pretrain_to_rl/{stage}/recipe.yaml").read_text()
        )
        assert recipe["model"]["path"] == f"outputs/pretrain_to_rl/{before}"


def test_example_keeps_what_is_finished(checkout):
    """A second run trains nothing, and reports again."""
    files = sorted((checkout / "outputs").rglob("metrics.jsonl"))
    before = [file.read_bytes() for file in files]
    done = run_example(checkout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is finished; remove it to train again") == 3
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("stage", ["pretrain", "sft", "train"])
def test_example_recipes_have_no_problem(checkout, monkeypatch, stage):
    """As they are, of full length."""
    monkeypatch.chdir(checkout)
    recipe = load_recipe(f"{ROOT}/examples/pretrain_to_rl/{stage}.yaml", (), STAGES[stage])
    assert check_recipe(recipe, 1, stage) == []
