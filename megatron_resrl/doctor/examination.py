"""One rank's part of an examination, and what rank 0 makes of all parts.

roll      who has come; the others are named and left out
host      the first rank of each host: software, GPUs, host, output folder
between   the same ranks together: shared folder, locks, ports, clocks
measure   every rank: a matrix product, all-reduces, messages to other ranks
judge     rank 0
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from megatron_resrl.doctor.facts.between_hosts import BetweenFacts, gather_between
from megatron_resrl.doctor.facts.folder import FolderFacts, gather_folder
from megatron_resrl.doctor.facts.gpus import GpuFacts, gather_gpus
from megatron_resrl.doctor.facts.host import HostFacts, gather_host
from megatron_resrl.doctor.facts.measured import (
    LONGEST_S,
    Measured,
    Request,
    gather_measured,
    limit_of,
)
from megatron_resrl.doctor.facts.rank import RankFacts, gather_rank
from megatron_resrl.doctor.facts.sandbox import SandboxFacts, gather_sandbox
from megatron_resrl.doctor.facts.software import SoftwareFacts, gather_software, gather_vllm
from megatron_resrl.doctor.meeting import Meeting
from megatron_resrl.doctor.needs import Needs
from megatron_resrl.doctor.options import DoctorOptions
from megatron_resrl.doctor.records import restored
from megatron_resrl.platform.launch import DEFAULT_PORT

HOST_S = 600.0
"""Seconds for what one host finds out by itself; each probe has a limit of its own."""
BETWEEN_S = 700.0
_MARGIN_S = 30.0
_COLLECTIVE_S = 60.0


@dataclass
class Host:
    """All facts of one host."""

    software: SoftwareFacts = field(default_factory=SoftwareFacts)
    vllm: SoftwareFacts | None = None
    """Where vLLM servers run; None: none are started there."""
    gpus: GpuFacts = field(default_factory=GpuFacts)
    host: HostFacts = field(default_factory=HostFacts)
    sandbox: SandboxFacts | None = None
    """None: the recipe runs no programs of responses."""
    folder: FolderFacts = field(default_factory=lambda: FolderFacts(""))
    between: BetweenFacts | None = None
    """None: it is the only host."""


@dataclass
class Examination:
    """All facts of a job."""

    size: int
    """Ranks that the launcher started."""
    ranks: dict[int, RankFacts] = field(default_factory=dict)
    """Those that have come."""
    hosts: dict[str, Host] = field(default_factory=dict)
    measured: dict[int, Measured] = field(default_factory=dict)
    silent: list[tuple[str, str]] = field(default_factory=list)
    """Who stopped to answer, and at what."""


def examine(meeting: Meeting, options: DoctorOptions, needs: Needs) -> Examination | None:
    """Takes this rank's part.

    Args:
        meeting: Of the job.
        options: What is wanted.
        needs: Of the recipe.

    Returns:
        All facts on rank 0, None on other ranks.

    Raises:
        RankZeroAbsent: Rank 0 did not answer.
    """
    roll = meeting.roll(asdict(gather_rank(os.environ)), options.wait)
    ranks = {rank: restored(RankFacts, each) for rank, each in sorted(roll.items())}
    if meeting.rank not in ranks:
        return None  # It came too late; rank 0 names it.
    leaders = _leaders(ranks)
    if meeting.rank in leaders:
        own = _own_host(options, needs, alone=meeting.size == 1)
        meeting.write_own("host", asdict(own))
        usable = own.folder.failure is None
        between = gather_between(meeting, leaders, needs.output_dir, usable=usable)
        meeting.write_own("between", {} if between is None else asdict(between))
    # All begin to measure at once; only rank 0 knows when the slowest host is ready.
    examination = None
    if meeting.rank == 0:
        examination = _collect_hosts(meeting, ranks, leaders)
        meeting.write("measure", [rank for rank in ranks if _answered(examination, ranks[rank])])
    taking_part = meeting.read("measure", HOST_S + BETWEEN_S + 2 * _MARGIN_S) or []
    if meeting.rank in taking_part:
        request = _request(meeting.rank, {rank: ranks[rank] for rank in taking_part}, options)
        meeting.write_own("measured", asdict(gather_measured(request)))
    if examination is not None:
        _collect_measured(meeting, examination, taking_part, options)
    return examination


def longest_s(options: DoctorOptions) -> float:
    """Seconds after which an examination that goes on has lost its store.

    Args:
        options: What is wanted.
    """
    return 3 * options.wait + HOST_S + BETWEEN_S + LONGEST_S + 4 * _MARGIN_S


def _leaders(ranks: Mapping[int, RankFacts]) -> dict[int, str]:
    """Host by its first rank."""
    leaders: dict[str, int] = {}
    for rank, facts in ranks.items():
        leaders.setdefault(facts.node, rank)
    return {rank: host for host, rank in leaders.items()}


def _own_host(options: DoctorOptions, needs: Needs, *, alone: bool) -> Host:
    # First, because imports of the libraries use the GPUs, too.
    gpus = gather_gpus(os.environ)
    return Host(
        software=gather_software(),
        vllm=gather_vllm(needs.vllm_python) if needs.vllm_python else None,
        gpus=gpus,
        # Under a launcher the ranks themselves listen at the port.
        host=gather_host([DEFAULT_PORT] if alone else []),
        sandbox=None if needs.code is None else gather_sandbox(needs.code),
        folder=gather_folder(needs.output_dir, quick=options.quick),
    )


def _collect_hosts(
    meeting: Meeting, ranks: dict[int, RankFacts], leaders: Mapping[int, str]
) -> Examination:
    examination = Examination(meeting.size, ranks)
    found = meeting.collect("host", leaders, HOST_S)
    between = meeting.collect("between", found, BETWEEN_S + _MARGIN_S)
    for rank, host in leaders.items():
        if rank not in found:
            examination.silent.append((str(ranks[rank].place), "what its host is like"))
            continue
        examination.hosts[host] = restored(Host, found[rank])
        if rank not in between:
            examination.silent.append((str(ranks[rank].place), "what its host sees of the others"))
        elif between[rank]:
            examination.hosts[host].between = restored(BetweenFacts, between[rank])
    return examination


def _answered(examination: Examination, rank: RankFacts) -> bool:
    return all(place != str(rank.place) for place, _ in examination.silent)


def _collect_measured(
    meeting: Meeting, examination: Examination, ranks: list[int], options: DoctorOptions
) -> None:
    request = _request(0, {rank: examination.ranks[rank] for rank in ranks}, options)
    found = meeting.collect("measured", ranks, limit_of(request) + _MARGIN_S)
    examination.measured = {rank: restored(Measured, each) for rank, each in found.items()}
    examination.silent += [
        (str(examination.ranks[rank].place), "the measurements")
        for rank in ranks
        if rank not in found
    ]


def _request(own: int, ranks: Mapping[int, RankFacts], options: DoctorOptions) -> Request:
    numbers = sorted(ranks)
    return Request(
        ranks=numbers,
        hosts=[ranks[rank].node for rank in numbers],
        index=numbers.index(own) if own in numbers else 0,
        address=os.environ.get("MASTER_ADDR", ""),
        port=int(os.environ.get("MASTER_PORT", "0")),
        prefix=f"doctor_links/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}",
        quick=options.quick,
        timeout_s=_COLLECTIVE_S,
    )
