"""Who is measured with whom, and which links and GPUs are called slow."""

from __future__ import annotations

from itertools import combinations

import pytest

from megatron_resrl.doctor.facts.measured import Measured, measured_of
from megatron_resrl.doctor.facts.rank import RankFacts
from megatron_resrl.doctor.pairs import rounds_of
from megatron_resrl.doctor.rules.compute import judge_products
from megatron_resrl.doctor.rules.links import (
    bus_bandwidth,
    judge_links,
    judge_sums,
    judge_unfinished,
)

H100 = "NVIDIA H100 80GB HBM3"


def hosts_of(hosts: int, ranks: int) -> list[str]:
    return [f"h{host}" for host in range(hosts) for _ in range(ranks)]


@pytest.mark.parametrize(("hosts", "ranks"), [(1, 2), (1, 8), (2, 8), (3, 5), (1, 3)])
def test_rounds_of_few_ranks_measure_every_pair_once(hosts, ranks):
    rounds = rounds_of(hosts_of(hosts, ranks))
    pairs = [pair for each in rounds for pair in each]
    assert sorted(pairs) == list(combinations(range(hosts * ranks), 2))


@pytest.mark.parametrize(("hosts", "ranks"), [(8, 8), (64, 8), (3, 7), (100, 1)])
def test_rounds_of_many_ranks_are_few_and_reach_every_rank(hosts, ranks):
    names = hosts_of(hosts, ranks)
    rounds = rounds_of(names)
    assert len(rounds) <= 16
    for pairs in rounds:
        members = [rank for pair in pairs for rank in pair]
        assert len(set(members)) == len(members)
    for inside in (True, False):
        reached = {
            rank
            for pairs in rounds
            for pair in pairs
            if (names[pair[0]] == names[pair[1]]) == inside
            for rank in pair
        }
        assert len(reached) == (len(names) if ranks > 1 or not inside else 0)


def test_rounds_of_hosts_with_different_numbers_of_ranks():
    names = ["a"] * 8 + ["b"] * 8 + ["c"] * 3
    pairs = [pair for each in rounds_of(names) for pair in each]
    assert {rank for pair in pairs for rank in pair} == set(range(19))
    assert len(set(pairs)) == len(pairs)


def test_bus_bandwidth_is_that_of_nccl_tests():
    # From nccl-tests' PERFORMANCE.md: 2 (n - 1) / n of the algorithm's.
    assert bus_bandwidth(10**9, 0.01, 8) == pytest.approx(100e9 * 2 * 7 / 8)
    assert bus_bandwidth(10**9, 0.01, 1) == 0


def job(hosts: int, ranks: int, slow=lambda a, b: False, device: str = H100, late=False):
    """Places, and measurements in which the slow links have a fifth of the bandwidth."""
    names = hosts_of(hosts, ranks)
    places = {rank: RankFacts(rank, rank % ranks, host) for rank, host in enumerate(names)}
    links: dict[int, list] = {rank: [] for rank in places}
    for pairs in rounds_of(names):
        for first, second in pairs:
            inside = names[first] == names[second]
            rate, latency = (300e9, 8e-6) if inside else (40e9, 15e-6)
            if slow(first, second):
                rate, latency = (rate, 300e-6) if late else (rate / 5, latency)
            links[first].append(
                {"ranks": [first, second], "latency_s": latency, "bandwidth": rate, "bytes": 1}
            )
    measured = {
        rank: Measured(device=device, gpu=str(rank % ranks), links=links[rank]) for rank in places
    }
    return measured, places


def test_links_that_are_all_alike_are_fine():
    assert list(judge_links(*job(4, 8))) == []
    assert list(judge_links(*job(1, 2))) == []


@pytest.mark.parametrize("late", [False, True])
def test_links_of_a_slow_host_name_the_host(late):
    def slow(first, second):
        return 8 <= first < 16 or 8 <= second < 16

    def between(first, second):
        return slow(first, second) and first // 8 != second // 8

    (found,) = judge_links(*job(4, 8, between, late=late))
    assert (found.rule, found.where) == ("links.slow", "host h1")


def test_links_of_a_slow_rank_name_the_rank_and_its_gpu():
    measured, places = job(1, 8, lambda first, second: 5 in (first, second))
    (found,) = judge_links(measured, places)
    assert found.where == "rank 5 (host h0, local rank 5, GPU 5)"
    assert "60 GB/s" in found.problem


def test_links_that_are_slow_alone_name_both_ends():
    (found,) = judge_links(*job(1, 8, lambda first, second: (first, second) == (2, 6)))
    assert found.where.startswith("rank 2 (host h0")
    assert "rank 6 (host h0" in found.where


def test_links_of_one_host_without_nvlink_name_the_host():
    (found,) = judge_links(*job(3, 4, lambda first, second: first // 4 == second // 4 == 2))
    assert found.where == "host h2"


def test_links_of_two_hosts_blame_neither():
    found = list(judge_links(*job(2, 4, lambda first, second: second - first == 4)))
    assert len(found) == 4
    assert all(" and " in each.where for each in found)


def test_links_far_below_the_data_sheet_are_said():
    measured, places = job(2, 4)
    for facts in measured.values():
        for link in facts.links:
            link["bandwidth"] /= 10
    assert [each.rule for each in judge_links(measured, places)] == [
        "links.nvlink",
        "links.network",
    ]


def test_links_of_processes_on_one_cpu_host_are_not_judged():
    assert not list(judge_links(*job(1, 4, lambda first, second: first == 0, device="cpu")))


def test_links_of_gpus_without_peer_access_are_said():
    measured, places = job(1, 2)
    measured[0] = Measured(device=H100, gpu="0", peers={"1": False}, links=measured[0].links)
    (found,) = judge_links(measured, places)
    assert (found.rule, "GPUs 1" in found.problem) == ("links.peer_access", True)


@pytest.mark.parametrize(
    ("rates", "device", "rule", "severity"),
    [
        ((700, 700, 500), H100, "compute.straggler", "wrong"),
        ((300, 300, 300), H100, "compute.slow", "wrong"),
        ((700, 690, 710), H100, None, None),
        ((3, 3, 1), "cpu", "compute.straggler", "note"),
        ((3, 3, 2), "cpu", None, None),
    ],
)
def test_products_are_held_against_the_median_and_the_peak(rates, device, rule, severity):
    places = {rank: RankFacts(rank, rank, "a") for rank in range(3)}
    measured = {
        rank: Measured(device=device, dtype="bfloat16", flops=rate * 1e12, last_flops=rate * 1e12)
        for rank, rate in enumerate(rates)
    }
    found = list(judge_products(measured, places))
    assert {each.rule for each in found} == ({rule} if rule else set())
    assert all(each.severity == severity for each in found)
    if rule == "compute.straggler":
        assert found[0].where.startswith("rank 2")


def test_products_that_slow_down_are_said():
    hot = Measured(
        device=H100, dtype="bfloat16", flops=700e12, best_flops=750e12, last_flops=600e12
    )
    (found,) = judge_products({0: hot}, {0: RankFacts(0, 0, "a")})
    assert found.rule == "compute.heated"


def test_sums_that_are_wrong_are_said():
    rows = [{"bytes": 4, "seconds": 1e-5, "right": True}]
    assert not list(judge_sums({0: Measured(all_reduces=rows)}))
    rows.append({"bytes": 2**20, "seconds": 1e-4, "right": False})
    (found,) = judge_sums({0: Measured(all_reduces=rows)})
    assert "1.05 MB" in found.problem


def test_measured_keeps_what_came_before_a_hang():
    said = [
        {"device": {"name": "cpu", "gpu": None, "peers": {}}},
        {"started": "a matrix product"},
        {"matrix": {"dtype": "float32", "flops": 1e9, "last": 1e9, "best": 1e9}},
        {"started": "messages between ranks 1 and 3"},
    ]
    facts = measured_of(said, "no answer within 90 s")
    assert facts.flops == 1e9
    (found,) = judge_unfinished({3: facts}, {3: RankFacts(3, 1, "b")})
    assert found.where == "rank 3 (host b, local rank 1)"
    assert found.problem.startswith("messages between ranks 1 and 3 did not come to its end")
    assert measured_of(said, None).unfinished is None
