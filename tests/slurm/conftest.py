"""One Slurm cluster for all tests of a process, and what its jobs train."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from slurm.cluster import Cluster, obstacle
from slurm.jobs import Trainings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests where there can be no Slurm, with the reason."""
    own = [item for item in items if item.get_closest_marker("slurm")]
    if own and (reason := obstacle()):
        for item in own:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Brought up by the first test that asks for it, taken down after the last."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def trainings(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    """Tiny trainings on the cluster."""
    return Trainings(cluster, tmp_path_factory.mktemp("trainings"))
