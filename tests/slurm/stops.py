"""Jobs that stop at a chosen point until they get a signal, so that a test can find them there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ranks import REPOSITORY
from slurm.cluster import Cluster, wait_until

TESTS = REPOSITORY / "tests"


@dataclass(frozen=True)
class Stop:
    """Where a rank waits for a signal; without one, for ever."""

    point: str
    """One of `fault_points.py`."""
    step: int | None
    """The training step; None: any."""
    rank: int = 0
    """The rank."""
    start: int = 0
    """How often Slurm had started the job before."""

    def file(self, folder: Path) -> Path:
        """Is there once the rank waits."""
        point = self.point.replace("/", "_")
        return folder / f"{point}.{self.step}.{self.rank}.{self.start}"

    def await_reached(self, cluster: Cluster, job: object, folder: Path) -> None:
        """Returns when the rank waits.

        Raises:
            AssertionError: It never came there, e.g. because the job has ended.
        """
        wait_until(
            self.file(folder).exists,
            told=lambda: f"{self}\n{cluster.job(job)}\n{cluster.output(job)}\n{cluster.logs()}",
            gave_up=lambda: cluster.ended(job),
        )


def stops_environment(stops: Sequence[Stop], folder: Path) -> dict[str, str]:
    """Variables of a job whose ranks stop there."""
    folder.mkdir(exist_ok=True)
    rows = [[str(each.file(folder)), each.start, each.point, each.step, each.rank] for each in stops]
    path = [str(REPOSITORY), str(TESTS / "slurm" / "site"), str(TESTS)]
    return {
        "RESRL_TEST_STOPS": json.dumps(rows),
        "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
    }
