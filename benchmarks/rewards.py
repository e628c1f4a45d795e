"""Graded responses per second of each reward, against the same verifier in a plain process pool.

    python benchmarks/rewards.py [--responses 400] [--repeats 5] [--output FILE]

* Rewards: those that judge one response by themselves, `code` with one test of printed output; two
  thirds of the responses are right. Ours is `Grader`, with a time-out and a memory limit for each
  response; the plain pool is `multiprocessing.Pool.map` over the same function, which one response
  that hangs would stop. Both are warm. They grade the same responses in turn, so that a noisy
  machine hits both.
* A sandbox: from handing over a program that prints one line to having read how it ended, in a warm
  sandbox; in a sandbox of its own; and as `python program.py`, without any.

The last line, `reward_ratio=`, is the smallest ratio of ours to the plain pool, of medians, over
all rewards and numbers of workers.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.rewards.grader import Grader, GradingTask
from megatron_resrl.rewards.registry import RewardFunction, load_reward
from megatron_resrl.sandbox.backends import ISOLATIONS, find_backend
from megatron_resrl.sandbox.sandbox import Sandbox

WORKERS = (1, 2)
STEPS = "First add what is known, then take away what is not. " * 20
PROGRAM = "print(sum(int(each) for each in input().split()))"


def _integer(right: int, said: int) -> tuple[str, Any]:
    return f"So the answer is {said}", str(right)


def _math(right: int, said: int) -> tuple[str, Any]:
    return f"So the answer is $\\boxed{{\\frac{{{2 * said}}}{{2}}}}$.", str(right)


def _multiple_choice(right: int, said: int) -> tuple[str, Any]:
    letters = "ABCDEFGHIJ"
    return f"So the answer is ({letters[said % 10]})", letters[right % 10]


def _countdown(right: int, said: int) -> tuple[str, Any]:
    return f"<answer>{said} * (7 - 5)</answer>", {"numbers": [said, 7, 5], "target": 2 * right}


def _function_calling(right: int, said: int) -> tuple[str, Any]:
    call = {"name": "add", "arguments": {"first": said, "second": [1, 2]}}
    return f"<tool_call>{json.dumps(call)}</tool_call>", [
        {"add": {"first": [right], "second": [[1, 2]]}}
    ]


def _format(right: int, said: int) -> tuple[str, Any]:
    answer = f"<answer>{said}</answer>" if said == right else str(said)
    return f"<think>{STEPS}</think>{answer}", ""


def _code(right: int, said: int) -> tuple[str, Any]:
    tests = {"inputs": [f"{said} 1\n"], "outputs": [f"{right + 1}\n"]}
    return f"\n```python\n{PROGRAM}\n```", tests


REWARDS: dict[str, Callable[[int, int], tuple[str, Any]]] = {
    "integer": _integer,
    "math": _math,
    "multiple_choice": _multiple_choice,
    "countdown": _countdown,
    "function_calling": _function_calling,
    "format": _format,
    "code": _code,
}
"""Reward -> end of a response that says a number, and the ground truth for the right number."""


def tasks_of(reward: str, number: int) -> list[GradingTask]:
    """Responses with their ground truths, of which every third is wrong."""
    return [_task(reward, each, each + (each % 3 == 0)) for each in range(number)]


def _task(reward: str, right: int, said: int) -> GradingTask:
    end, truth = REWARDS[reward](right, said)
    response = end if reward == "format" else f"{STEPS} {end}"
    return GradingTask(response, truth, "", "", {}, f"prompt {right}")


def plain(task: tuple[str, GradingTask]) -> float:
    """The verifier without anything around it."""
    reward, of = task
    return _function(reward)(of.response, of.ground_truth, prompt="", data_source="", extra={})


@functools.cache
def _function(reward: str) -> RewardFunction:
    return load_reward(reward).function


def compare(reward: str, workers: int, number: int, repeats: int) -> tuple[float, float]:
    """Responses per second of ours and of the plain pool, medians."""
    tasks = tasks_of(reward, number)
    right = [float(each % 3 != 0) for each in range(number)]
    pairs = [(reward, each) for each in tasks]
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = [], []
    with (
        Grader(reward, workers=workers, timeout_s=60.0, memory_gb=4.0) as grader,
        spawn.Pool(workers) as pool,
    ):
        for repeat in range(repeats + 1):
            first = _seconds(lambda: [each.score for each in grader.grade(tasks)], right)
            second = _seconds(lambda: pool.map(plain, pairs), right)
            if repeat:  # Before that, processes and sandboxes start.
                ours.append(number / first)
                theirs.append(number / second)
    return statistics.median(ours), statistics.median(theirs)


def _seconds(grade: Callable[[], list[float]], right: list[float]) -> float:
    start = time.perf_counter()
    scores = grade()
    seconds = time.perf_counter() - start
    if scores != right:
        raise SystemExit("the responses were not graded as they should be")
    return seconds


def start_ups(repeats: int) -> Iterator[tuple[str, list[float]]]:
    """Milliseconds of a program that prints one line, by how it is run."""
    isolation = ISOLATIONS[find_backend(CodeConfig())]  # type: ignore[index]
    program = b"print(1)"

    def timed(run: Callable[[], bytes]) -> float:
        start = time.perf_counter()
        if run() != b"1\n":
            raise SystemExit("the program did not print what it should")
        return 1000 * (time.perf_counter() - start)

    def in_new_sandbox() -> bytes:
        with Sandbox(isolation, memory_mb=512) as sandbox:
            return sandbox.run("script", program, seconds=60.0).output

    with Sandbox(isolation, memory_mb=512) as warm, tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "program.py")
        file.write_bytes(program)
        ways: dict[str, Callable[[], bytes]] = {
            "in a warm sandbox": lambda: warm.run("script", program, seconds=60.0).output,
            "in a sandbox of its own": in_new_sandbox,
            "python program.py, no sandbox": lambda: subprocess.check_output(
                [sys._base_executable, "-I", "-S", str(file)]
            ),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(repeats + 1):
            for name, run in ways.items():
                milliseconds = timed(run)
                if repeat:
                    found[name].append(milliseconds)
    yield from found.items()


def report(number: int, repeats: int) -> tuple[list[str], float]:
    """Lines of Markdown, and the smallest ratio."""
    lines = [
        "| reward | workers | `Grader`, responses/s | plain pool, responses/s | ratio |",
        "|---|---|---|---|---|",
    ]
    ratios = []
    for reward in REWARDS:
        for workers in WORKERS:
            ours, theirs = compare(reward, workers, number, repeats)
            ratios.append(ours / theirs)
            lines.append(f"| {reward} | {workers} | {ours:.0f} | {theirs:.0f} | {ratios[-1]:.2f} |")
    lines += [
        "",
        "| a program that prints one line | median, ms | 90 % within, ms |",
        "|---|---|---|",
    ]
    for name, milliseconds in start_ups(10 * repeats):
        late = statistics.quantiles(milliseconds, n=10)[-1]
        lines.append(f"| {name} | {statistics.median(milliseconds):.1f} | {late:.1f} |")
    return lines, min(ratios)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=400, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="Markdown file")
    options = parser.parse_args()
    before = describe(("math-verify", "sympy", "pebble"), threads=1)
    lines, ratio = report(options.responses, options.repeats)
    text = "\n".join(["# Rewards", "", before, "", *lines, ""])
    print(text)
    if options.output is not None:
        options.output.write_text(text)
    print(f"reward_ratio={ratio:.3f}")


if __name__ == "__main__":
    main()
