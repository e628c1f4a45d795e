"""The two examples with environments train for a few steps by the real command, on a CPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import run_command
from tiny_task import read_metrics

EXAMPLES = Path(__file__).parents[2] / "examples" / "tools"
STEPS = 3


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions and the tiny model, as the example's README makes them."""
    directory = tmp_path_factory.mktemp("tools")
    subprocess.run(
        [sys.executable, EXAMPLES / "prepare.py", "--directory", directory],
        check=True,
        timeout=600,
        capture_output=True,
    )
    return directory


def train(prepared: Path, example: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs an example's recipe with the files of `prepared`."""
    files = {
        "--output_dir": prepared / example,
        "--model.path": prepared / "tiny",
        "--data.train_files": f"[{prepared / example}.jsonl]",
        "--steps": STEPS,
        "--logging.progress_bar": "false",
    }
    given = [word for pair in files.items() for word in pair]
    return run_command("train", EXAMPLES / f"{example}.yaml", *given, *arguments)


@pytest.mark.parametrize("example", ["calculator", "number_game"])
@pytest.mark.setting("rollout.environment")
def test_environment_of_an_example_trains_on_several_turns(prepared: Path, example: str) -> None:
    done = train(prepared, example)
    assert done.returncode == 0, done.stderr
    steps = [line for line in read_metrics(prepared / example) if "loss" in line]
    assert len(steps) == STEPS
    for line in steps:
        assert math.isfinite(line["loss"])
        assert math.isfinite(line["grad_norm"])
        assert line["update/applied"] == 1
        assert line["episode/turns_mean"] > 1
        assert line["episode/observation_tokens_mean"] > 0
        assert line["episode/observations_mean"] == pytest.approx(line["episode/turns_mean"] - 1)
        # Rollout and trainer agree on the policy's own tokens, and only these are compared.
        assert line["mismatch/log_prob_max"] < 1e-3
    assert 0 < steps[0]["reward/mean"] < 1
    samples = [json.loads(line) for line in (prepared / example / "samples.jsonl").open()]
    told = {"calculator": "<|im_start|> tool", "number_game": "<|im_start|> user"}[example]
    several = [sample for sample in samples if "transcript" in sample]
    assert several
    for sample in several:
        assert told in sample["transcript"]
        assert sample["transcript"].split() != sample["response"].split()


@pytest.mark.slow
def test_environment_teaches_a_tiny_model_the_number(prepared: Path) -> None:
    game = json.dumps({"prompt": "Find the number from 1 to 16 .", "answer": "11"})
    (prepared / "always_11.jsonl").write_text((game + "\n") * 16)
    files = ["--data.train_files", f"[{prepared / 'always_11.jsonl'}]"]
    output = ["--output_dir", str(prepared / "learned"), "--steps", "8"]
    done = train(prepared, "number_game", *files, *output, "--algorithm.name", "grpo")
    assert done.returncode == 0, done.stderr
    rewards = [line["reward/mean"] for line in read_metrics(prepared / "learned") if "loss" in line]
    # 0.20 at first and 0.82 at last, measured; the seed is fixed.
    assert rewards[-1] > rewards[0] + 0.3, rewards


def test_environment_that_fails_ends_the_run_with_its_name(prepared: Path) -> None:
    file = prepared / "mine.py"
    file.write_text(
        "class Broken:\n"
        "    role = 'user'\n"
        "    def reset(self, record, seed): pass\n"
        "    def step(self, action): raise LookupError('no such square')\n"
    )
    output = str(prepared / "broken")
    options = ["--rollout.environment", f"{file}:Broken", "--output_dir", output]
    done = train(prepared, "calculator", *options)
    assert done.returncode == 2
    assert "raised LookupError: no such square (step, turn 0 of sample 0 of prompt" in done.stderr
    assert "Traceback" not in done.stderr
