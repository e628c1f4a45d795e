"""Compares the first training steps of two checkouts, bit for bit: the proof of a refactoring.

    git worktree add /tmp/before main
    python tools/compare_training.py /tmp/before .

Trains the quickstart's recipe for two steps with the code of each checkout, and compares loss,
gradient norm and what leads to them with all digits. The model and the questions are those of
`examples/quickstart/run.sh`, which has to have run here once. What follows `--` are settings for
both runs, e.g. `-- --algorithm.name grpo`. `--ranks 2` trains on two ranks with torchrun.

Exit status: 0 equal, 1 different, 2 a run failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RECIPE = "examples/quickstart/recipe.yaml"
COMPARED = ("loss", "grad_norm", "entropy", "reward/mean", "resrl/negative_mass", "learning_rate")
"""Metrics that must be equal; one that neither checkout logs is left out."""

Row = Mapping[str, Any]


def differences(before: Sequence[Row], after: Sequence[Row]) -> list[str]:
    """Compares the metrics of two runs.

    Args:
        before: One mapping of metric to value per step.
        after: The same of the other run.

    Returns:
        A line for every step and metric that is not exactly equal, and one if the runs have
        different numbers of steps or no step at all.
    """
    found = []
    if len(before) != len(after) or not before:
        found.append(f"{len(before)} steps before, {len(after)} after")
    for old, new in zip(before, after, strict=False):
        for name in COMPARED:
            if old.get(name) != new.get(name):
                found.append(f"step {old['step']} {name}: {old.get(name)!r} -> {new.get(name)!r}")
    return found


def train(checkout: Path, output: Path, steps: int, ranks: int, settings: list[str]) -> list[Row]:
    """Trains with the code of a checkout and reads the metrics of its steps.

    Raises:
        RuntimeError: The run failed; its log is named.
    """
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    # The schedule of the whole recipe, though only its first steps run.
    fixed = (
        f"--steps {steps} --evaluation.every 0 --evaluation.files [] --optimizer.lr_decay_steps 12"
    )
    command = [*launch, "-m", "megatron_resrl", "train", str(checkout / RECIPE), *fixed.split()]
    command += ["--checkpoint.export_hf", "false", "--output_dir", str(output), *settings]
    log = output.with_suffix(".log")
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    environment.setdefault("OMP_NUM_THREADS", "1")
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"training with {checkout} ended with {done.returncode}; see {log}")
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    return [row for row in map(json.loads, filter(None, lines)) if "loss" in row]


def main() -> int:
    """Runs the command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another checkout")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("settings", nargs="*", help="settings for both runs, after --")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="compare_training_"))
    try:
        before, after = (
            train(checkout.resolve(), folder / name, given.steps, given.ranks, given.settings)
            for name, checkout in (("before", given.before), ("after", given.after))
        )
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    for row in before:
        print(f"step {row['step']}: " + ", ".join(f"{n} {row[n]!r}" for n in COMPARED if n in row))
    found = differences(before, after)
    print("\n".join(found) or f"equal to the bit in {len(before)} steps")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
