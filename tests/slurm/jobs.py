"""Tiny trainings as jobs of a Slurm cluster, which stop at chosen points."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from faults import assert_same_run
from ranks import REPOSITORY, run_ranks
from slurm.cluster import Cluster, wait_until
from tiny_task import write_task

_LIMIT_MIN = 60
"""Time limit of a job that is not to reach it."""
_SAVE_BEFORE_MIN = 10
"""Before its limit a job wants Slurm's signal."""
_OPTIONS = (
    *("--nodes=2", "--gpus_per_node=0", "--cpus_per_node=1"),  # Beside other jobs.
    *(f"--time={_LIMIT_MIN}", f"--save_before={60 * _SAVE_BEFORE_MIN}", "--requeue"),
)


@dataclass(frozen=True)
class Stop:
    """A point at which something happens to a rank."""

    point: str
    """One of `fault_points.py`."""
    step: int | None
    """The training step; None: any."""
    rank: int = 0
    """The rank."""
    start: int = 0
    """How often Slurm had started the job before."""
    action: str = "wait"
    """`wait` for a signal, without one for ever; `kill`: SIGKILL; or `go on`."""

    def mark(self, folder: Path) -> Path:
        """A file that is there once the rank was at the point."""
        return folder / re.sub(r"\W+", "_", f"{self.point} {self.step} {self.rank} {self.start}")


@dataclass(frozen=True)
class Job:
    """A job of a cluster."""

    cluster: Cluster
    """Where it is."""
    number: str
    """Slurm's number of it."""
    run: Path
    """Its output directory, as this process reaches it."""
    marks: Path
    """Folder of the marks of its stops."""

    def state(self) -> dict[str, str]:
        """What `scontrol show job` says."""
        return self.cluster.job(self.number)

    def output(self) -> str:
        """What the script and the ranks have written, in all starts."""
        logs = sorted((self.run / "slurm").rglob("*.log"), key=lambda file: file.stat().st_mtime)
        return "\n".join(f"{file}:\n{file.read_text()}" for file in logs)

    def await_stop(self, stop: Stop) -> None:
        """Returns when a rank is or was there.

        Raises:
            AssertionError: The rank never came there, e.g. because the job has ended.
        """
        wait_until(
            stop.mark(self.marks).exists,
            message=lambda: f"{stop}\n{self.state()}\n{self.output()}\n{self.cluster.logs()}",
            hopeless=lambda: self.cluster.ended(self.number),
        )

    def await_requeue(self) -> None:
        """Returns when the job has ended and waits to be started again."""
        self.cluster.wait(self.number, ["PENDING"])

    def approach_limit(self) -> None:
        """Sets the time limit so near that Slurm signals the job within seconds."""
        hours, minutes, _ = map(int, self.state()["RunTime"].split(":"))
        self._limit(60 * hours + minutes + _SAVE_BEFORE_MIN // 2)

    def nodes(self) -> list[str]:
        """Where it runs or has run last."""
        nodes = self.state()["NodeList"]
        return self.cluster.run("scontrol", "show", "hostnames", nodes).stdout.split()

    def run_out_of_time(self) -> None:
        """Makes the time limit come near; returns when the job waits to be started again."""
        self.approach_limit()
        self.await_requeue()
        self._limit(_LIMIT_MIN)

    def end(self) -> dict[str, str]:
        """Waits for the end, after which it is not started again."""
        return self.cluster.wait(self.number)

    def _limit(self, minutes: int) -> None:
        self.cluster.run("scontrol", "update", f"jobid={self.number}", f"TimeLimit={minutes}")


class Trainings:
    """Makes recipes of one task and submits them.

    Args:
        cluster: Gets the jobs.
        root: Of recipes and runs.
    """

    def __init__(self, cluster: Cluster, root: Path) -> None:
        self.cluster = cluster
        self.root = root
        # Written while training waits, so that it is known what a stop finds.
        checkpoint = {"save_every": 2, "async_save": False}
        task = write_task(root / "task", evaluation__files=[], checkpoint=checkpoint)
        self._settings: dict[str, Any] = yaml.safe_load(task.read_text())

    def recipe(self, name: str, *, output_dir: Path | None = None, **changes: Any) -> Path:
        """Writes a recipe of four steps.

        Args:
            name: Of the file.
            output_dir: Of the run; default: the file without its ending.
            changes: Settings at the top, or settings of a section.
        """
        path = self.root / f"{name}.yaml"
        settings = self._settings | {"output_dir": str(output_dir or path.with_suffix(""))}
        for key, value in changes.items():
            settings[key] = settings[key] | value if isinstance(value, dict) else value
        path.write_text(yaml.safe_dump(settings))
        return path

    def undisturbed(self, **changes: Any) -> Path:
        """Output directory of a run on two ranks that nothing happened to.

        Args:
            changes: Of the recipe, see `recipe`.
        """
        name = "undisturbed" + "".join(f"_{key}_{value}" for key, value in changes.items())
        run = self.root / name
        if not run.exists():
            run_ranks("-m megatron_resrl", 2, "train", self.recipe(name, **changes))
        return run

    def assert_undisturbed(self, run: Path, **changes: Any) -> None:
        """A run has the bits of one that nothing happened to."""
        assert_same_run(run, self.undisturbed(**changes))

    def launch(self, recipe: Path, *options: str, stops: Sequence[Stop] = ()) -> Job:
        """Submits a recipe with the product's command: two ranks on two nodes."""
        return self.launch_chain([str(recipe)], *options, stops=stops)[0]

    def launch_chain(
        self, recipes: Sequence[str], *options: str, stops: Sequence[Stop] = ()
    ) -> list[Job]:
        """Submits recipes, each started after the one before it; `[STAGE:]FILE` names one."""
        marks = _file(recipes[0]).with_suffix(".stops")
        done = self.ask(*recipes, *options, "--submit", stops=_stops_environment(stops, marks))
        assert done.returncode == 0, done.stderr
        numbers = re.findall(r"^(\d+):", done.stdout, re.MULTILINE)
        runs = [yaml.safe_load(_file(each).read_text())["output_dir"] for each in recipes]
        return [
            Job(self.cluster, number, self.cluster.outside(Path(run)), marks)
            for number, run in zip(numbers, runs, strict=True)
        ]

    def ask(
        self, *words: str, stops: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs `megatron-resrl launch` for two ranks on two nodes; later options win."""
        recipes = [word for word in words if not word.startswith("--")]
        options = [word for word in words if word.startswith("--")]
        command = ["python", "-m", "megatron_resrl", "launch", *recipes, *_OPTIONS, *options]
        return self.cluster.run(*command, cwd=self.root, environment=stops, check=False)


def _file(recipe: str) -> Path:
    return Path(recipe.rpartition(":")[2])


def _stops_environment(stops: Sequence[Stop], marks: Path) -> dict[str, str]:
    """Variables of a job whose ranks stop there."""
    marks.mkdir(exist_ok=True)
    rows = [asdict(stop) | {"mark": str(stop.mark(marks))} for stop in stops]
    tests = REPOSITORY / "tests"
    path = [str(REPOSITORY), str(tests / "slurm" / "site"), str(tests)]
    return {"RESRL_TEST_STOPS": json.dumps(rows), "PYTHONPATH": os.pathsep.join(path)}
