"""How a command that cannot be launched ends: one sentence, status 2, the cause for torchrun."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_recipe import write_model, write_recipe

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("launch")
    return write_recipe(directory, write_model(directory / "model"))


def environment(**variables: object) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in variables.items()}


def start(*arguments: object, **variables: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "megatron_resrl", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment(**variables),
        cwd=REPOSITORY,
    )


def test_train_writes_the_cause_into_the_torchrun_error_file(recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    result = start("train", recipe, RANK=1, LOCAL_RANK=1, TORCHELASTIC_ERROR_FILE=file)
    assert result.returncode == 2
    sentence = "RANK = '1': WORLD_SIZE is not set beside it"
    assert result.stderr.startswith(
        f"rank 1 (host {socket.gethostname()}, local rank 1): {sentence}"
    )
    assert len(result.stderr.splitlines()) == 1
    written = json.loads(file.read_text())["message"]
    assert written["message"].startswith(sentence)
    assert int(written["extraInfo"]["timestamp"]) > 0
    assert written["extraInfo"]["kind"] == "input"
    assert written["extraInfo"]["place"]["host"] == socket.gethostname()


@pytest.mark.setting("precision.deterministic")
def test_train_sets_and_logs_switches_of_a_deterministic_run(recipe: Path) -> None:
    script = (
        "import os, torch; from megatron_resrl.cli.start import start; "
        f"start({str(recipe)!r}, ['--precision.deterministic=true'], 'train'); "
        "print(os.environ['NCCL_ALGO'], torch.are_deterministic_algorithms_enabled())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment(),
        cwd=REPOSITORY,
    )
    assert done.stdout == "Ring True\n", done.stderr
    assert (
        "environment variables set for the libraries: NVTE_ALLOW_NONDETERMINISTIC_ALGO=0 "
        "NCCL_ALGO=Ring CUBLAS_WORKSPACE_CONFIG=:4096:8" in done.stderr
    )


def test_cli_message_is_the_root_cause_that_torchrun_shows(recipe: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "megatron_resrl", "train", str(recipe), "--steps=0"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        env=environment(),
        cwd=REPOSITORY,
    )
    assert done.returncode == 1
    root = done.stderr.partition("Root Cause")[2]
    assert "steps = 0: out of range; it must be at least 1" in root
    assert re.search(r"exitcode\s*: 2", root)
    assert "Traceback (most recent call last)" not in done.stderr.partition("torch/")[0]


def test_cli_prints_one_sentence_on_ctrl_c_while_loading(recipe: Path) -> None:
    # The recipe is a pipe: the command waits for it until it is interrupted.
    pipe = recipe.with_name("pipe.yaml")
    os.mkfifo(pipe)
    for command, words in (("train", "before the first step"), ("eval", "stopped by Ctrl-C")):
        process = subprocess.Popen(
            [sys.executable, "-m", "megatron_resrl", command, str(pipe)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=REPOSITORY,
            # Shells start what runs in the background with Ctrl-C ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        with pipe.open("w"):  # Returns when the other end is opened.
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=600)
        assert process.returncode == 130
        assert words in said
        assert len(said.splitlines()) == 1
