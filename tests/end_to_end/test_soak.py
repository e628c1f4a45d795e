"""Two hundred steps with a kill every twenty: nothing grows, and nothing but time is lost."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import Fault, assert_same_run, start_task
from tiny_task import write_task

pytestmark = pytest.mark.faults

STEPS, SAVE_EVERY, EVALUATE_EVERY, KILL_EVERY, KEEP_LAST = 200, 5, 10, 20, 2
WARM_STEP = 40
"""From here on a process has seen everything that repeats: saves, evaluations, its caches."""
MEMORY_SLACK_MIB = 48
"""Allowed between warm and last step: the allocator's arenas, a few dozen bytes of logs a step."""
DESCRIPTOR_SLACK = 6
"""Allowed at once above the warm process: files that a save or a log has open at that moment."""


@dataclass(frozen=True)
class Seen:
    """A process at one moment."""

    step: int
    memory_mib: float
    descriptors: int
    disk: int
    """Bytes of checkpoints."""


def _look(process_id: int, run: Path) -> Seen:
    status = Path(f"/proc/{process_id}/status").read_text()
    memory = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return Seen(
        step=(run / "metrics.jsonl").read_text().count("\n") - 1,
        memory_mib=int(memory.split()[1]) / 1024,
        descriptors=len(os.listdir(f"/proc/{process_id}/fd")),
        disk=_size(run / "checkpoints"),
    )


def _size(folder: Path) -> int:
    """Bytes of all files below; what is deleted meanwhile counts nothing."""
    total = 0
    for directory, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(directory, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _run(recipe: Path, fault: Fault | None) -> tuple[int, str, list[Seen]]:
    """Status, output, and what was seen of the process every fifth of a second."""
    process = start_task(recipe, fault, ranks=1)
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.append(process.stdout.read()))
    reader.start()
    seen: list[Seen] = []
    while process.poll() is None:
        with contextlib.suppress(OSError, StopIteration):  # Not yet there, or just gone.
            seen.append(_look(process.pid, recipe.parent / "run"))
        time.sleep(0.2)
    reader.join()
    return process.returncode, output[0], seen


def _task(directory: Path) -> Path:
    return write_task(
        directory,
        steps=STEPS,
        checkpoint__save_every=SAVE_EVERY,
        checkpoint__keep_last=KEEP_LAST,
        evaluation__every=EVALUATE_EVERY,
        rollout__group_size=3,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Seen]]:
    """The run in one go."""
    recipe = _task(tmp_path_factory.mktemp("undisturbed"))
    code, output, seen = _run(recipe, None)
    assert code == 0, output
    return recipe.parent / "run", seen


def test_soak_run_does_not_grow(undisturbed):
    run, seen = undisturbed
    warm = [each for each in seen if WARM_STEP <= each.step < WARM_STEP + 20]
    last = [each for each in seen if STEPS - 20 <= each.step < STEPS]
    memory = [max(each.memory_mib for each in when) for when in (warm, last)]
    print(f"\nmemory {memory[0]:.0f} -> {memory[1]:.0f} MiB", end=", ")
    descriptors = [max(each.descriptors for each in when) for when in (warm, last)]
    print(f"descriptors {descriptors[0]} -> {descriptors[1]}")
    assert memory[1] - memory[0] < MEMORY_SLACK_MIB
    assert max(each.descriptors for each in seen) <= descriptors[0] + DESCRIPTOR_SLACK
    _assert_disk_is_bounded(run, seen)


def test_soak_run_killed_often_ends_with_the_same_bits(undisturbed, tmp_path):
    recipe = _task(tmp_path)
    all_seen: list[Seen] = []
    for step in range(KILL_EVERY + 1, STEPS, KILL_EVERY):
        code, output, seen = _run(recipe, Fault("kill", "phase:sync", step=step, rank=0))
        assert code == -9, output
        all_seen += seen
    code, output, seen = _run(recipe, None)
    assert code == 0, output
    run = tmp_path / "run"
    _assert_disk_is_bounded(run, all_seen + seen)
    assert_same_run(run, undisturbed[0])


def _assert_disk_is_bounded(run: Path, seen: list[Seen]) -> None:
    """Those that are kept, one being written and one being deleted."""
    one = _size(run / "checkpoints") / KEEP_LAST
    assert max(each.disk for each in seen) < (KEEP_LAST + 2) * one * 1.1
