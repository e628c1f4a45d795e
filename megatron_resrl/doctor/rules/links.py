"""Rules on the links between ranks: slow ones, wrong sums, ranks that got stuck."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from megatron_resrl.doctor.facts.measured import Measured, placed
from megatron_resrl.doctor.facts.rank import RankFacts
from megatron_resrl.doctor.finding import Finding
from megatron_resrl.planning.gpus import GPUS, Gpu
from megatron_resrl.platform.disk import format_bytes
from megatron_resrl.platform.gpu_peaks import gpu_in_table

SLOW_LINK = 0.5
"""Of the usual bandwidth of links of the same kind."""
FEW_LINKS = 3
"""Links of a kind from which on something is usual."""
LATE, LATE_S = 3.0, 50e-6
"""Times the usual latency, and seconds above it."""
BLAMED = 0.75
"""Of the links of a host or rank: if so many are slow, it is named instead of them."""
ALL_SLOW = 0.25
"""Of the data sheet's rate, see `planning.gpus`: below it links of a kind are slow altogether."""


@dataclass(frozen=True)
class Link:
    """What was measured between two ranks."""

    ranks: tuple[int, int]
    latency_s: float
    bandwidth: float
    """Bytes/s."""


def links_of(measured: Iterable[Measured]) -> list[Link]:
    """All links that were measured."""
    return [
        Link((each["ranks"][0], each["ranks"][1]), each["latency_s"], each["bandwidth"])
        for one in measured
        for each in one.links
    ]


def bus_bandwidth(size: int, seconds: float, ranks: int) -> float:
    """Bytes/s that each link carries in an all-reduce, as nccl-tests compute it: 2 (n - 1) / n of
    size / seconds, which does not depend on the number of ranks.

    Args:
        size: Bytes of the tensor.
        seconds: Of one all-reduce.
        ranks: n.
    """
    return size / seconds * 2 * (ranks - 1) / ranks


def judge_unfinished(
    measured: Mapping[int, Measured], places: Mapping[int, RankFacts]
) -> Iterator[Finding]:
    """Ranks whose measurement did not come to its end.

    Args:
        measured: By rank.
        places: Of each rank.
    """
    for rank, facts in measured.items():
        if facts.failure is not None:
            yield Finding(
                "links.unfinished",
                str(places[rank].place),
                f"{facts.unfinished} did not come to its end ({facts.failure})",
                "see the ranks named with it and their other findings; NCCL_DEBUG=INFO shows where "
                "NCCL stops",
            )


def judge_sums(measured: Mapping[int, Measured]) -> Iterator[Finding]:
    """All-reduces whose sum is wrong.

    Args:
        measured: By rank.
    """
    wrong = [
        each["bytes"] for one in measured.values() for each in one.all_reduces if not each["right"]
    ]
    if wrong:
        yield Finding(
            "links.wrong_sum",
            "",
            f"an all-reduce of {format_bytes(wrong[0])} of ones gave another sum than the number "
            "of ranks: data are damaged on the way",
            "halve the hosts until the broken one is found, and exclude it",
        )


def judge_links(
    measured: Mapping[int, Measured], places: Mapping[int, RankFacts]
) -> Iterator[Finding]:
    """Links that are slow among those of their kind: within hosts, and between hosts.

    A link is slow if its bandwidth is less than `SLOW_LINK` of the usual, or its latency above
    `LATE` times the usual and `LATE_S` above it. Usual is the median of the faster half: one host
    of three is an end of two thirds of all links between hosts. A host or rank is named instead of
    its links if `BLAMED` of them, and at least two, are slow.

    Args:
        measured: By rank.
        places: Of each rank.
    """
    kinds: dict[bool, list[Link]] = {True: [], False: []}
    for link in links_of(measured.values()):
        first, second = (places[rank].node for rank in link.ranks)
        kinds[first == second].append(link)
    on_gpus = any(facts.device not in (None, "cpu") for facts in measured.values())
    for inside, links in kinds.items():
        words = "inside of a host" if inside else "between hosts"
        # Processes of one host without GPUs have no link between them, and share its CPUs.
        if len(links) >= FEW_LINKS and (on_gpus or not inside):
            yield from _slow_among(links, places, measured, words)
        if links:
            yield from _slow_altogether(links, measured, inside=inside)
    yield from _peers(measured, places)


def _slow_among(
    links: Sequence[Link],
    places: Mapping[int, RankFacts],
    measured: Mapping[int, Measured],
    words: str,
) -> Iterator[Finding]:
    bandwidth = -_usual([-link.bandwidth for link in links])
    latency = _usual([link.latency_s for link in links])
    slow = [
        link
        for link in links
        if link.bandwidth < SLOW_LINK * bandwidth
        or link.latency_s > max(LATE * latency, latency + LATE_S)
    ]
    remedy = (
        "see its cards, cables and switch port (ibstat, ethtool, nvidia-smi nvlink --status), and "
        "exclude it (sbatch --exclude)"
    )
    usual = f"usual {words} are {format_bytes(bandwidth)}/s and {latency * 1e6:.0f} us"
    blamed, rest = blame(slow, links, {rank: facts.node for rank, facts in places.items()})
    for who, its in blamed:
        where = (
            f"host {who}" if isinstance(who, str) else str(placed(places[who], measured.get(who)))
        )
        worst = min(its, key=lambda link: link.bandwidth)
        yield Finding(
            "links.slow",
            where,
            f"its links {words} are slow: {_rates(worst)} between ranks {worst.ranks[0]} and "
            f"{worst.ranks[1]}; {usual}",
            remedy,
        )
    for link in rest:
        first, second = (placed(places[rank], measured.get(rank)) for rank in link.ranks)
        yield Finding(
            "links.slow",
            f"{first} and {second}",
            f"the link between them is slow: {_rates(link)}; {usual}",
            remedy.replace("its", "their").replace("exclude it", "exclude one of the hosts"),
        )


def _usual(values: Sequence[float]) -> float:
    """The median of the lower half."""
    return statistics.median(sorted(values)[: (len(values) + 1) // 2])


def blame(
    slow: Sequence[Link], links: Sequence[Link], hosts: Mapping[int, str]
) -> tuple[list[tuple[str | int, list[Link]]], list[Link]]:
    """Who is behind slow links: hosts first, then ranks.

    Args:
        slow: Those that are slow.
        links: All of the same kind.
        hosts: Host of each rank.

    Returns:
        Host or rank with its slow links, and the links that nobody in particular is behind.
    """
    found: list[tuple[str | int, list[Link]]] = []
    rest = list(slow)

    ends_of: tuple[Callable[[Link], set[str | int]], ...] = (
        lambda link: {hosts[rank] for rank in link.ranks},
        lambda link: set(link.ranks),
    )
    for ends in ends_of:
        everybody = {end for link in links for end in ends(link)}
        # Of two that a link joins, nobody knows which one is slow.
        joined = any(len(ends(link)) > 1 for link in links)
        if len(everybody) < (3 if joined else 2):
            continue
        remaining = list(links)
        while rest:
            slow_of = Counter(end for link in rest for end in ends(link))
            all_of = Counter(end for link in remaining for end in ends(link))
            who = max(slow_of, key=lambda each: (slow_of[each] / all_of[each], slow_of[each]))
            if slow_of[who] < max(2, BLAMED * all_of[who]):
                break
            found.append((who, [link for link in rest if who in ends(link)]))
            # Links to the one that was found say nothing about the others.
            rest = [link for link in rest if who not in ends(link)]
            remaining = [link for link in remaining if who not in ends(link)]
    return found, rest


def _slow_altogether(
    links: Sequence[Link], measured: Mapping[int, Measured], *, inside: bool
) -> Iterator[Finding]:
    """All links of a kind against the data sheet of the GPUs."""
    gpu = _gpu_of(measured)
    if gpu is None:
        return
    expected = gpu.nvlink if inside else gpu.network
    median = statistics.median(link.bandwidth for link in links)
    if median >= ALL_SLOW * expected:
        return
    if inside:
        yield Finding(
            "links.nvlink",
            "",
            f"GPUs of a host exchange {format_bytes(median)}/s, and NVLink of {gpu.name} has "
            f"{format_bytes(expected)}/s",
            "see `nvidia-smi topo -m`, the fabric manager, and whether NCCL_P2P_DISABLE is set; "
            "NCCL_DEBUG=INFO says `via P2P` where NVLink is used",
        )
    else:
        yield Finding(
            "links.network",
            "",
            f"GPUs of different hosts exchange {format_bytes(median)}/s; hosts with {gpu.name} "
            f"usually have {format_bytes(expected)}/s for each",
            "NCCL_DEBUG=INFO says `NET/IB` where InfiniBand or RoCE is used and `NET/Socket` for "
            "TCP: see ibstat, /dev/infiniband in containers, and NCCL_IB_HCA",
            "note",
        )


def _peers(measured: Mapping[int, Measured], places: Mapping[int, RankFacts]) -> Iterator[Finding]:
    gpu = _gpu_of(measured)
    for rank, facts in measured.items():
        closed = [peer for peer, open_ in facts.peers.items() if not open_]
        if gpu is not None and gpu.name != "l40s" and closed:
            yield Finding(
                "links.peer_access",
                str(placed(places[rank], facts)),
                f"its GPU cannot read the memory of GPUs {', '.join(closed)} of the host",
                "turn off ACS and IOMMU translation in the BIOS or the virtual machine, and see "
                "`nvidia-smi topo -p2p r`",
            )


def _gpu_of(measured: Mapping[int, Measured]) -> Gpu | None:
    """The GPU of all ranks, if the table has it."""
    names = {facts.device for facts in measured.values() if facts.device}
    name = names.pop() if len(names) == 1 else ""
    key = gpu_in_table(name)
    if key is None or "pcie" in name.lower():  # The table's links are those of SXM modules.
        return None
    return next(gpu for gpu_name, gpu in GPUS.items() if gpu_name.startswith(key))


def _rates(link: Link) -> str:
    return f"{format_bytes(link.bandwidth)}/s and {link.latency_s * 1e6:.0f} us"
