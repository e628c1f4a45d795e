"""What a rank has measured: its device, and its links to the other ranks."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from megatron_resrl.doctor.facts.rank import RankFacts
from megatron_resrl.doctor.pairs import MOST_ROUNDS, rounds_of
from megatron_resrl.doctor.processes import ask
from megatron_resrl.platform.places import Place

_START_S, _QUICK_START_S = 180.0, 90.0
"""Seconds for imports, connections and collectives of all ranks."""
_ROUND_S = 5.0
"""Seconds for each round of pairs."""
LONGEST_S = _START_S + _ROUND_S * MOST_ROUNDS
"""Of any job."""


@dataclass(frozen=True)
class Request:
    """What is to be measured."""

    ranks: list[int]
    """The ranks that take part."""
    hosts: list[str]
    """Host of each of them."""
    index: int
    """This rank's place among them."""
    address: str
    """Of the job's store."""
    port: int
    prefix: str
    """Of keys in the store."""
    quick: bool
    timeout_s: float
    """Of one collective."""

    def to_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Measured:
    """Of one rank. Rates in bytes/s and FLOP/s."""

    device: str | None = None
    """Name of its GPU, or `cpu`."""
    gpu: str | None = None
    """Number of the GPU on its host."""
    peers: dict[str, bool] = field(default_factory=dict)
    """CUDA's number of each other GPU that the rank sees -> whether it can read its memory."""
    dtype: str = ""
    """Of the matrix product."""
    flops: float | None = None
    """Of the matrix product; median of five parts."""
    last_flops: float | None = None
    """Of the last part."""
    best_flops: float | None = None
    all_reduces: list[dict[str, Any]] = field(default_factory=list)
    """`bytes`, `seconds`, `ranks`, and `right`: whether the sum was; on the first rank only."""
    links: list[dict[str, Any]] = field(default_factory=list)
    """`ranks`, `latency_s`, `bytes`, `bandwidth` of each pair of which this rank is the first."""
    unfinished: str | None = None
    """What was being measured when it ended too early."""
    failure: str | None = None
    """Why it ended too early."""


def gather_measured(request: Request) -> Measured:
    """Measures in a process of its own, which libraries may abort.

    Args:
        request: What is to be measured.
    """
    said = ask(
        [sys.executable, "-m", "megatron_resrl.doctor.measure", request.to_json()],
        limit_of(request),
    )
    return measured_of(said.objects, said.failure)


def placed(rank: RankFacts, facts: Measured | None) -> Place:
    """The place of a rank, with its GPU.

    Args:
        rank: The rank.
        facts: What it has measured; None: nothing.
    """
    return dataclasses.replace(rank.place, gpu=facts.gpu if facts else None)


def limit_of(request: Request) -> float:
    """Seconds after which the process is ended."""
    start = _QUICK_START_S if request.quick else _START_S
    return start + _ROUND_S * len(rounds_of(request.hosts))


def measured_of(said: Sequence[Mapping[str, Any]], failure: str | None) -> Measured:
    """Puts together what the process has printed.

    Args:
        said: Its objects, in order.
        failure: Why it did not end well; None: it did.
    """
    device: Mapping[str, Any] = {}
    matrix: Mapping[str, Any] = {}
    unfinished: str | None = "the import of torch"
    for each in said:
        device = each.get("device", device)
        matrix = each.get("matrix", matrix)
        unfinished = each.get("started", unfinished)
    return Measured(
        device=device.get("name"),
        gpu=device.get("gpu"),
        peers=dict(device.get("peers", {})),
        dtype=matrix.get("dtype", ""),
        flops=matrix.get("flops"),
        last_flops=matrix.get("last"),
        best_flops=matrix.get("best"),
        all_reduces=[each["all_reduce"] for each in said if "all_reduce" in each],
        links=[each["link"] for each in said if "link" in each],
        unfinished=unfinished if failure is not None else None,
        failure=failure,
    )
