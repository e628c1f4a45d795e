"""Hosts of a job that differ in GPUs or clocks, and ranks that are named with their places."""

from __future__ import annotations

import socket

from megatron_resrl.platform.hosts import RankReport, clock_notes, gpu_problem
from megatron_resrl.platform.places import Place, hosts_of_only, own_place
from megatron_resrl.platform.skews import clock_skews

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB"


def reports(*hosts: tuple[str, str | None, float]) -> list[RankReport]:
    return [
        RankReport(Place(rank, host, 0), gpu, clock)
        for rank, (host, gpu, clock) in enumerate(hosts)
    ]


def test_hosts_with_different_gpus_are_named() -> None:
    assert gpu_problem(reports(("a", H100, 0.0), ("b", H100, 0.0))) is None
    assert gpu_problem(reports(("a", None, 0.0), ("b", None, 0.0))) is None
    said = gpu_problem(reports(("a", H100, 0.0), ("b", H100, 0.0), ("c", A100, 0.0)))
    assert said is not None
    assert f"{H100} on rank 0 (host a, local rank 0), {A100} on rank 2 (host c" in said


def test_hosts_whose_clocks_differ_are_named() -> None:
    together = reports(("a", None, 100.0), ("b", None, 100.4), ("c", None, 99.9))
    assert not list(clock_notes(together))
    apart = reports(("a", None, 100.0), ("a", None, 100.1), ("b", None, 137.0), ("c", None, 100.2))
    (note,) = clock_notes(apart)
    assert note.startswith("the clock of host b is 37 s ahead of the other hosts'")
    assert clock_skews({"a": 100.0, "b": 90.0}) == {"a": 10.0, "b": 0.0}


def test_place_names_host_local_rank_and_gpu() -> None:
    assert str(Place(9, "n2", 1, "5")) == "rank 9 (host n2, local rank 1, GPU 5)"
    own = own_place({"RANK": "3", "LOCAL_RANK": "1"})
    assert str(own) == f"rank 3 (host {socket.gethostname()}, local rank 1)"
    assert Place(**own.to_json()) == own
    assert own_place({"RANK": "x"}).rank == 0


def test_hosts_of_only_wants_all_ranks_of_a_host() -> None:
    places = [Place(0, "a", 0), Place(1, "a", 1), Place(2, "b", 0), Place(3, "b", 1)]
    assert hosts_of_only({0, 2, 3}, places) == ("b",)
    assert hosts_of_only({0}, places) == ()
