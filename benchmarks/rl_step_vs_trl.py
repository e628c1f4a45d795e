"""Seconds per RL step, phase by phase, against TRL's GRPOTrainer.

    python benchmarks/rl_step_vs_trl.py [--steps N] [--output benchmarks/results/rl_step_vs_trl.md]

The same tiny Qwen3 (fp32, the same weights), prompts, completions, reward function, algorithm
(GRPO, one update per step, no KL, no recomputation), optimizer and threads. Each trainer has a
process of its own, so that neither pays for the other's imports; they step in turn (ours, theirs,
ours, ...), so that a noisy machine hits all, and medians are compared. Per step:

1. Ours samples, grades, scores, updates and logs: the body of `training.rl_loop.train`.
2. TRL samples as many tokens, which is timed; its completions are then exchanged for ours, which
   it grades and trains on.

So both train on the same completions, and their gradient norms must agree: that is checked first.
The end-of-sequence token lies outside the model's vocabulary, so all completions have the same
length. Neither makes a pass for old log-probabilities, as the batch is used for one update only.

TRL has its best settings for this: the whole step in one batch (`--trl_batch`: smaller ones),
activations kept (by default they are recomputed), attention by torch's kernel, no KL term, nothing
saved or reported. It has no setting that keeps a prompt from passing once for each completion.

Three tables: short prompts with both right and wrong answers in every group, which makes the ratio
in the last line; the same with half the groups all wrong, as hard questions have it; and prompts of
256 tokens with 64 new ones. Columns have each of our features switched off.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import command, describe
from trl_trainers import GROUP_SIZE, PROMPTS, Case, Step, ours, theirs, write_task

WARM_UP = 3
"""Steps that are compared but not timed: allocators are still cold."""
TOLERANCE = 1e-4
"""Relative difference of gradient norms in the first step: fp32 sums in another order."""
PHASES = ("rollout", "reward", "scoring", "update", "other")
PACKAGES = ("torch", "transformers", "trl", "megatron-core")
COPIES = "prompts not shared"
OFF = {"two passes": {"single_pass": "never"}, COPIES: {"shared_prompts": "never"}}
"""Columns with a feature switched off: settings of `algorithm`."""


def step_in_turn(
    directory: Path, case: Case, steps: int, variants: Sequence[dict[str, str]]
) -> list[tuple[Step, ...]]:
    """Steps of ours with each of the settings, and TRL's, which trains on the first's completions.

    Args:
        directory: See `write_task`.
        case: What is sampled.
        steps: Of each trainer.
        variants: Settings of `algorithm`.
    """
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    trainers: list[tuple[Any, tuple[Any, ...]]] = [(ours, (each,)) for each in variants]
    for trainer, more in (*trainers, (theirs, ())):
        end, far_end = context.Pipe()
        process = context.Process(target=trainer, args=(far_end, directory, case, steps, *more))
        process.start()
        far_end.close()  # So that waiting for a trainer that died raises EOFError.
        ends.append(end)
        processes.append(process)
    records = []
    for _ in range(steps):
        mine, completions = [], []
        for end in ends[:-1]:
            end.send(None)
            step, sampled = end.recv()
            mine.append(step)
            completions.append(sampled)
        ends[-1].send(completions[0])
        records.append((*mine, ends[-1].recv()))
    ends[-1].send(None)
    for process in processes:
        process.join()
    return records


def check(records: Sequence[tuple[Step, ...]]) -> str:
    """Compares what the trainers computed; ends the program if it is not the same."""
    *mine, other = records[0]
    first = max(abs(each.grad_norm / other.grad_norm - 1) for each in mine)
    later = max(abs(step[0].grad_norm / step[-1].grad_norm - 1) for step in records)
    norms = ", ".join(f"{each.grad_norm:.7f}" for each in mine)
    said = (
        f"Gradient norm of the first step: {norms} (ours), {other.grad_norm:.7f} (TRL), relative "
        f"difference {first:.1e}, allowed {TOLERANCE:.0e}; entropy {mine[0].entropy:.6f} and "
        f"{other.entropy:.6f}. Largest relative difference of the gradient norms in all "
        f"{len(records)} steps, each trainer on its own weights: {later:.1e}."
    )
    if first > TOLERANCE:
        raise SystemExit(f"the trainers do not compute the same. {said}")
    return said


def table(
    records: Sequence[tuple[Step, ...]], names: Sequence[str]
) -> tuple[list[str], list[float]]:
    """Median milliseconds per phase, and the ratios of the median steps to TRL's.

    Args:
        records: Of all trainers; TRL is the last.
        names: Of all but TRL.
    """
    by_trainer = list(zip(*records, strict=True))
    lines = [f"| ms | {' | '.join((*names, 'TRL'))} |", "|---" * (len(by_trainer) + 1) + "|"]
    for name in PHASES:
        medians = (
            1000 * statistics.median(step.seconds.get(name, 0.0) for step in steps)
            for steps in by_trainer
        )
        lines.append(f"| {name} | {' | '.join(f'{each:.1f}' for each in medians)} |")
    steps = [statistics.median(step.total for step in steps) for steps in by_trainer]
    lines.append(f"| **step** | {' | '.join(f'**{1000 * each:.1f}**' for each in steps)} |")
    ratios = [each / steps[-1] for each in steps[:-1]]
    lines.append(f"| of TRL's | {' | '.join(f'{each:.2f}' for each in ratios)} | 1 |")
    return lines, ratios


def short_prompts(steps: int) -> tuple[list[str], float]:
    """Lines of the first two tables, and the first one's ratio."""
    case, mixed = Case(new_tokens=16), WARM_UP + steps
    with tempfile.TemporaryDirectory() as directory:
        write_task(Path(directory), case, mixed, steps)
        records = step_in_turn(Path(directory), case, mixed + steps, [{}, OFF[COPIES]])
    names = ["ours", COPIES]
    first, [ratio, _] = table(records[WARM_UP:mixed], names)
    second, _ = table(records[mixed:], names)
    return [
        f"{case.new_tokens} new tokens for prompts of four or five, right and wrong answers in "
        f"every group. {check(records)}",
        "",
        *first,
        "",
        "The same, half of the groups all wrong:",
        "",
        *second,
    ], ratio


def long_prompts(steps: int, trl_batch: int) -> list[str]:
    """Lines of the third table."""
    case = Case(new_tokens=64, prompt_tokens=256, trl_batch=trl_batch)
    with tempfile.TemporaryDirectory() as directory:
        write_task(Path(directory), case, WARM_UP + steps, 0)
        records = step_in_turn(Path(directory), case, WARM_UP + steps, [{}, *OFF.values()])
    lines, _ = table(records[WARM_UP:], ["ours", *OFF])
    return [
        f"{case.new_tokens} new tokens for prompts of {case.prompt_tokens}, right and wrong "
        f"answers in every group; TRL takes {trl_batch} completions at once. {check(records)}",
        "",
        *lines,
    ]


def main() -> None:
    """Lets the trainers step in turn, and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each kind")
    parser.add_argument("--long_steps", type=int, default=8, help="those with long prompts")
    parser.add_argument("--trl_batch", type=int, default=PROMPTS * GROUP_SIZE)
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    where = describe(PACKAGES, threads=1)
    short, ratio = short_prompts(options.steps)
    text = "\n".join(
        [
            "# One RL step against TRL's GRPOTrainer",
            "",
            f"`{command()}`, {where}. Medians of steps in turn; {PROMPTS} prompts x "
            f"{GROUP_SIZE} completions, Qwen3 with 0.6 M parameters, fp32.",
            "",
            *short,
            "",
            *long_prompts(options.long_steps, options.trl_batch),
            "",
            f"step_ratio={ratio:.2f}",
        ]
    )
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
