"""Runs on two ranks that break, and what a restart makes of them: bit by bit an undisturbed run.

    pytest tests/end_to_end/test_faults.py -m faults -s

prints the table of docs/reliability.md; with RELIABILITY_TABLE=docs/reliability.md it is written
there, between the markers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import Ended, Fault, assert_same_run, run_task
from ranks import run_ranks_with_log
from safetensors.torch import load_file
from tiny_task import read_metrics, write_task

pytestmark = pytest.mark.faults

LAYOUTS = {"DP2": (), "TP2": ("--parallel.tensor_model_parallel_size=2",)}
HANG = ("--parallel.timeout_minutes=0.25",)
SHARD = "__{rank}_0.distcp"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


@dataclass(frozen=True)
class Case:
    """A fault and what has to come of it."""

    what: str
    """In words."""
    where: str
    """In words."""
    fault: Fault
    layout: str
    outcome: str
    """In words."""
    says: tuple[str, ...] = ()
    """What the run must have said."""
    code: int = 1
    """The launcher's status."""
    rank_code: int | None = None
    """The status of the first rank to fail, as the launcher saw it."""
    resumed_after: int = 2
    """Step that the restart goes on from."""
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the test."""
        return f"{self.what}, {self.where}, {self.layout}"


def _killed(rank: int, where: str, at: str, **changes: object) -> Case:
    """SIGKILL of one rank; the other one has to name it and to end."""
    phase = at.removeprefix("phase:") if at.startswith("phase:") else "checkpoint write"
    named = f"rank {rank} did not answer: last seen entering phase {phase!r} of step 3"
    return Case(
        f"SIGKILL of rank {rank}",
        where,
        Fault("kill", at, rank=rank),
        "DP2" if rank else "TP2",
        "the other rank names it, its phase and step",
        says=(named,),
        rank_code=-9,
        **changes,
    )


def _killed_in_the_background(rank: int, where: str, at: str) -> Case:
    """SIGKILL while the checkpoint of step 3 is written beside step 4."""
    return Case(
        f"SIGKILL of rank {rank}",
        f"{where}, in the background",
        Fault("kill", at, rank=rank, step=None),
        "TP2" if rank else "DP2",
        "the other rank names it",
        says=(f"rank {rank} did not answer",),
        rank_code=-9,
        settings=("--checkpoint.async_save=true",),
    )


def _hung(action: str, rank: int, what: str, runs: str) -> Case:
    """A rank that does not go on; found after parallel.timeout_minutes."""
    return Case(
        f"{what} of rank {rank}",
        "update",
        Fault(action, "phase:update", rank=rank),
        "DP2",
        "after the time-out the other rank names it, its phase and step",
        says=(f"rank {rank} did not answer{runs}: last seen entering phase 'update' of step 3",),
        rank_code=2,
        settings=HANG,
    )


def _signalled(action: str, what: str, where: str, code: int, **changes: object) -> Case:
    """A signal that asks the run to end."""
    return Case(
        what,
        where,
        Fault(action, f"phase:{where}"),
        "DP2",
        "the step is finished and saved",
        says=("the run ended after step 3, which is saved in",),
        code=code,
        resumed_after=3,
        **changes,
    )


PHASES = ("rollout", "reward", "scoring", "subspace", "update", "sync", "evaluation")
CASES = [
    *(_killed(rank, phase, f"phase:{phase}") for phase in PHASES for rank in (0, 1)),
    *(_killed(rank, "writing a shard", f"write:{SHARD.format(rank=rank)}") for rank in (0, 1)),
    _killed(0, "naming the finished checkpoint", "rename:step_000003"),
    _killed(0, "switch of `latest`", "rename:latest"),
    _killed(0, "deletion of the oldest checkpoint", "remove:.removed", resumed_after=3),
    *(
        _killed_in_the_background(
            rank, "writing a shard", f"write:step_000003.incomplete/{SHARD.format(rank=rank)}"
        )
        for rank in (0, 1)
    ),
    _killed_in_the_background(0, "naming the finished checkpoint", "rename:step_000003"),
    _hung("stop", 1, "SIGSTOP", ""),
    _hung("stop", 0, "SIGSTOP", ""),
    _hung("loop", 1, "endless loop", ", though its process runs"),
    Case(
        "exception on rank 1",
        "update",
        Fault("raise", "phase:update"),
        "DP2",
        "its traceback is printed, the other rank repeats the cause",
        says=(
            "local rank 1) failed in phase 'update' of step 3",
            "MemoryError: out of memory, as asked for",
        ),
        rank_code=1,
    ),
    Case(
        "NaN in a gradient of rank 1",
        "update, `non_finite: stop`",
        Fault("nan", "phase:update"),
        "DP2",
        "step and dump are named, the step is not saved",
        says=("step 3: the loss or a gradient was not finite", "not_finite/step_000003.jsonl"),
        rank_code=2,
        settings=("--optimizer.non_finite=stop",),
    ),
    _signalled("usr1", "SIGUSR1 to rank 1", "rollout", 0),
    _signalled("term", "SIGTERM to rank 1", "reward", 1, rank_code=143),
    _signalled("term launcher", "SIGTERM to torchrun", "reward", 1),
]


class Table:
    """What was seen, as rows of Markdown."""

    def __init__(self) -> None:
        self.rows = [
            "| fault | where | outcome | status of torchrun (of the rank) | restart |",
            "|---|---|---|---|---|",
        ]

    def add(self, what: str, where: str, outcome: str, ended: Ended, restart: str) -> None:
        rank_code = ended.first_rank_code()
        status = f"{ended.code}" + ("" if rank_code is None else f" ({rank_code})")
        self.rows.append(f"| {what} | {where} | {outcome} | {status} | {restart} |")


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """Collects the rows, and prints them when all is done."""
    table = Table()
    yield table
    text = "\n".join(table.rows) + "\n"
    print(f"\n{text}")
    if os.environ.get("RELIABILITY_TABLE"):
        path = Path(os.environ["RELIABILITY_TABLE"])
        before, rest = path.read_text().split(BEGIN)
        path.write_text(before + BEGIN + "\n" + text + "\n" + END + rest.split(END)[1])


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a copy of the task with a run folder of its own; returns its recipe."""
    root = tmp_path_factory.mktemp("tasks")
    # Written while training waits, so that it is known what a fault finds.
    checkpoint = {"save_every": 1, "async_save": False}
    write_task(root / "task", evaluation__every=3, checkpoint=checkpoint)

    def make(name: str) -> Path:
        recipe = root / f"{name.replace(' ', '_').replace('/', '_')}.yaml"
        text = (root / "task" / "recipe.yaml").read_text()
        run = recipe.with_suffix("")
        recipe.write_text(text.replace(str(root / "task" / "run"), str(run)))
        return recipe

    return make


@pytest.fixture(scope="module")
def undisturbed(task: Callable[[str], Path]) -> Callable[[str], Path]:
    """Runs without a fault, once per layout; returns the run's folder."""
    runs: dict[str, Path] = {}

    def run(layout: str) -> Path:
        if layout not in runs:
            recipe = task(f"undisturbed {layout}")
            _train(recipe, layout)
            runs[layout] = recipe.with_suffix("")
        return runs[layout]

    return run


def _train(recipe: Path, layout: str) -> str:
    """Trains without a fault and returns the log. Not by torchrun, which takes longer to start."""
    command = ("-m megatron_resrl", 2, "train", recipe, *LAYOUTS[layout])
    return run_ranks_with_log(*command)[1]


def _finish(recipe: Path, layout: str, after: int, expected: Path) -> str:
    """Starts the run again: it goes on after a step and ends like an undisturbed one."""
    log = _train(recipe, layout)
    assert (f"resumed after step {after}" in log) == (after > 0), log
    run = recipe.with_suffix("")
    assert not (run / "interrupted.json").exists()
    assert_same_run(run, expected)
    return log


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fault_ends_a_run_that_continues_to_the_same_bits(case, task, undisturbed, table):
    recipe = task(case.name)
    ended = run_task(recipe, case.fault, *LAYOUTS[case.layout], *case.settings)
    assert ended.code == case.code, ended.text
    for words in case.says:
        assert words in ended.text, ended.text
    if case.rank_code is not None:
        assert ended.first_rank_code() == case.rank_code, ended.text
    run = recipe.with_suffix("")
    assert not (run / "hf").exists()
    if case.fault.action in ("usr1", "term", "term launcher"):
        note = json.loads((run / "interrupted.json").read_text())
        assert note["signal"] == ("SIGUSR1" if case.fault.action == "usr1" else "SIGTERM")
        assert note["step"] == 3
        assert Path(note["checkpoint"]).is_dir()
    _finish(recipe, case.layout, case.resumed_after, undisturbed(case.layout))
    restart = f"after step {case.resumed_after}, same bits"
    table.add(case.what, f"{case.where}, {case.layout}", case.outcome, ended, restart)


def test_fault_in_a_gradient_skips_an_update_and_makes_no_nan(task, table):
    recipe = task("nan skip")
    ended = run_task(recipe, Fault("nan", "phase:update"))
    assert ended.code == 0, ended.text
    assert "step 3: a gradient was not finite, the update was skipped on all ranks" in ended.text
    run = recipe.with_suffix("")
    assert [line.get("update/not_finite") for line in read_metrics(run)] == [None, 0, 0, 1, 0]
    weights = load_file(run / "hf" / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    where = "update, `non_finite: skip`, DP2"
    outcome = "the update is left out on all ranks, the batch is dumped, the run goes on"
    table.add("NaN in a gradient of rank 1", where, outcome, ended, "not needed")


@pytest.mark.parametrize("damage", ["truncated", "bit-flipped"])
def test_fault_in_a_checkpoint_falls_back_to_the_one_before(damage, task, undisturbed, table):
    recipe = task(damage)
    first = run_task(recipe, Fault("usr1", "phase:rollout"))
    assert first.code == 0, first.text
    newest = recipe.with_suffix("") / "checkpoints" / "step_000003"
    shard = max(newest.glob("*.distcp"), key=lambda file: file.stat().st_size)
    content = bytearray(shard.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    log = _finish(recipe, "DP2", 2, undisturbed("DP2"))
    assert newest.name in log
    assert shard.name in log
    outcome = "the restart names folder and file and takes the checkpoint before"
    table.add(
        f"{damage} shard", "newest checkpoint, DP2", outcome, first, "after step 2, same bits"
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path, int], None]]:
    """Mounts or resizes a file system in memory of so many bytes on a folder."""
    mounted: set[Path] = set()

    def mount(folder: Path, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        how = ["-o", f"remount,size={size}"] if folder in mounted else ["-o", f"size={size}"]
        command = ["mount", "-t", "tmpfs", *how, "tmpfs", str(folder)]
        if shutil.which("mount") is None:
            pytest.skip("a full disk needs the mount command")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a full disk needs a mounted tmpfs: {done.stderr.strip()}")
        mounted.add(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("room", "said", "after"),
    [
        (0.6, "no space left on", 0),
        (2.5, "no space left on", 2),
    ],
    ids=["in the middle", "noticed before"],
)
def test_fault_of_a_full_disk_costs_no_checkpoint(
    room, said, after, task, undisturbed, small_disk, table
):
    expected = undisturbed("DP2")
    newest = expected / "checkpoints" / "step_000004"
    one = sum(file.stat().st_size for file in newest.rglob("*"))
    recipe = task(f"full disk {room}")
    checkpoints = recipe.with_suffix("") / "checkpoints"
    small_disk(checkpoints, int(room * one))
    ended = run_task(recipe)
    assert ended.code == 1, ended.text
    assert ended.first_rank_code() == 2, ended.text
    assert said in ended.text
    kept = {path.name for path in checkpoints.iterdir()} - {"latest"}
    assert kept == {f"step_{step + 1:06d}" for step in range(after)}
    small_disk(checkpoints, 8 * one)
    _finish(recipe, "DP2", after, expected)
    outcome = "the run ends and says so, the checkpoints before stay"
    where = f"room for {room} checkpoints, DP2"
    goes_on = f"after step {after}" if after else "from the start"
    table.add("full disk", where, outcome, ended, f"{goes_on}, same bits")
