"""Puts faults into copies of the checkout and counts those that the tests notice. On request.

    python tests/mutation/run.py code --rooms algorithms,training --sample 20
    python tests/mutation/run.py code --again results.jsonl
    python tests/mutation/run.py settings --names algorithm.clip_low,resrl.floor

`code`: a sample of each room's mutants (`mutants.py`), the same for the same seed. `settings`: the
schema returns the default of one setting after another, and the tests that claim the setting must
fail. Prints a line per fault and the score; `--output FILE` also writes them as JSON lines. What
survives is a gap in the tests, or changes nothing: the latter are listed in `equivalent.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import pytest
from ignored_settings import schema_without
from mutants import mutants_of
from targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
EQUIVALENT = Path(__file__).with_name("equivalent.txt")


@dataclass(frozen=True)
class Fault:
    """One changed file and the tests that should notice."""

    name: str
    path: str
    source: str
    rounds: Sequence[Sequence[str]]
    """Arguments of pytest, one round after the other until one fails."""


def mutants(room: str) -> list[Fault]:
    """All mutants of a room, without those that are known to change nothing."""
    equivalent = set(EQUIVALENT.read_text(encoding="utf-8").split("\n"))
    target = TARGETS[room]
    found = [
        Fault(" ".join(mutant.name.split()), path, mutant.source, target.rounds)
        for path in target.files(ROOT)
        for mutant in mutants_of(ROOT, path)
    ]
    return [fault for fault in found if fault.name not in equivalent]


def code_faults(rooms: Sequence[str], sample: int, seed: int) -> list[Fault]:
    """`sample` mutants of every room."""
    faults = []
    for room in rooms:
        found = mutants(room)
        faults += random.Random(f"{seed} {room}").sample(found, min(sample, len(found)))
    return faults


def survivors(rooms: Sequence[str], results: Path) -> list[Fault]:
    """The mutants that survived an earlier run, by its `--output`."""
    lines = results.read_text(encoding="utf-8").split("\n")[:-1]
    records = [json.loads(line) for line in lines]
    names = {record["fault"] for record in records if record["outcome"] == "survived"}
    found = {fault.name: fault for room in rooms for fault in mutants(room) if fault.name in names}
    return list(found.values())


def setting_faults(names: Sequence[str]) -> list[Fault]:
    """One fault per setting: it is ignored."""
    from setting_claims import claims, class_of

    files = claims()
    selected = ("-m", "slow or not slow", "--setting")
    faults = []
    for name in names:
        # `schema.py` has all classes of reinforcement learning, some from files of their own.
        stage = name.rpartition(":")[0]
        path = f"megatron_resrl/config/{f'schema_{stage}' if stage else 'schema'}.py"
        leaf = name.rpartition(":")[2].rpartition(".")[2]
        source = schema_without((ROOT / path).read_text(), class_of(name), leaf)
        faults.append(Fault(name, path, source, ((*selected, name, *files[name]),)))
    return faults


class Checkouts:
    """Copies of the working tree, one per worker, in which faults are tried."""

    def __init__(self, directory: Path, workers: int) -> None:
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
        self._free: Queue[Path] = Queue()
        for number in range(workers):
            copy = directory / str(number) / "checkout"
            for file in files.stdout.split("\n"):
                if (ROOT / file).is_file():
                    (copy / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / file, copy / file)
            for name in (".venv-vllm", ".te"):
                if (ROOT / name).exists():
                    (copy / name).symlink_to(ROOT / name)
            self._free.put(copy)

    def try_fault(self, fault: Fault, timeout: float) -> tuple[str, str]:
        """Returns `killed`, `timeout`, `survived` or `no tests`, and what noticed it."""
        copy = self._free.get()
        right = (copy / fault.path).read_text()
        try:
            (copy / fault.path).write_text(fault.source)
            for tests in fault.rounds:
                outcome, detail = _run_tests(copy, tests, timeout)
                if outcome != "survived":
                    return outcome, detail
            return "survived", ""
        finally:
            (copy / fault.path).write_text(right)
            self._free.put(copy)


def _run_tests(copy: Path, arguments: Sequence[str], timeout: float) -> tuple[str, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    environment = os.environ | {
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return "timeout", " ".join(arguments)
    if done.returncode == pytest.ExitCode.USAGE_ERROR:
        sys.exit(f"{arguments}: {done.stderr[-500:]}")
    if done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        return "no tests", " ".join(arguments)
    failed = [line for line in done.stdout.split("\n") if line.startswith(("FAILED", "ERROR"))]
    noticed = failed[0][:160] if failed else done.stdout[-160:]
    return ("survived", "") if done.returncode == 0 else ("killed", noticed)


def run(faults: Sequence[Fault], workers: int, timeout: float, output: Path | None) -> int:
    """Tries all faults. Returns the number that nothing noticed."""
    counts: dict[str, int] = {}

    def report(fault: Fault, outcome: str, detail: str) -> None:
        counts[outcome] = counts.get(outcome, 0) + 1
        print(f"{outcome:9} {fault.name}\n          {detail}", flush=True)
        if output:
            record = {"fault": fault.name, "outcome": outcome, "by": detail}
            with output.open("a") as file:
                file.write(json.dumps(record) + "\n")

    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(workers) as pool:
        checkouts = Checkouts(Path(directory), workers)
        tried = [pool.submit(checkouts.try_fault, fault, timeout) for fault in faults]
        for fault, future in zip(faults, tried, strict=True):
            report(fault, *future.result())
    noticed = counts.get("killed", 0) + counts.get("timeout", 0)
    print(f"{noticed} of {len(faults)} faults noticed ({noticed / max(len(faults), 1):.0%})")
    return len(faults) - noticed


def main(every_setting: Callable[[], list[str]]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=("code", "settings"))
    parser.add_argument("--rooms", default=",".join(TARGETS), help="of: " + ", ".join(TARGETS))
    parser.add_argument("--sample", type=int, default=20, help="mutants of each room")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--again", type=Path, help="an earlier --output: only what survived there")
    parser.add_argument("--names", help="settings; default: all")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--timeout", type=float, default=600, help="seconds per round of tests")
    parser.add_argument("--output", type=Path, help="JSON lines are appended to it")
    given = parser.parse_args()
    if given.kind == "code":
        rooms = given.rooms.split(",")
        if given.again:
            faults = survivors(rooms, given.again)
        else:
            faults = code_faults(rooms, given.sample, given.seed)
    else:
        faults = setting_faults(given.names.split(",") if given.names else every_setting())
    return int(run(faults, given.workers, given.timeout, given.output) > 0)


def _settings() -> list[str]:
    from setting_claims import every_setting

    return every_setting()


if __name__ == "__main__":
    sys.exit(main(_settings))
