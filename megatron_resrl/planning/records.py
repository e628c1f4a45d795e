"""What one rank does in each phase of a step: the result of a dry run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PHASES = ("build", "generation", "scoring", "subspace", "update", "weight_export", "checkpoint")
"""Names of the phases, in the order in which a step goes through them."""

GROUPS = (
    "tensor",
    "pipeline",
    "data",
    "context",
    "expert",
    "expert_tensor",
    "expert_data",
    "subspace",
    "world",
    "host",
)
"""Names of process groups. `host` is everything that goes over the host's network (gloo)."""


@dataclass(frozen=True)
class Holder:
    """A source line that holds memory.

    Attributes:
        line: `file.py:line`, the innermost line of the product, and in brackets the innermost line
            of the library that it called.
        kind: What the memory is, as in `PhaseRecord.peak_by_kind`.
        bytes: Bytes that the line holds at the peak of its phase.
    """

    line: str
    kind: str
    bytes: int


@dataclass(frozen=True)
class Traffic:
    """Calls of one collective in one group.

    Attributes:
        group: One of `GROUPS`.
        size: Ranks in the group.
        collective: `all_reduce`, `all_gather`, `reduce_scatter`, `all_to_all`, `broadcast`, `send`,
            `recv`, ...
        calls: Number of calls.
        bytes: Bytes that this rank sends, as NCCL's rings do: of an all-reduce of s bytes over n
            ranks 2 s (n - 1) / n, of an all-gather or reduce-scatter of s bytes in all, or an
            all-to-all of s bytes, s (n - 1) / n, of a broadcast s. A `recv` sends nothing.
    """

    group: str
    size: int
    collective: str
    calls: int
    bytes: int


@dataclass(frozen=True)
class Wait:
    """A source line at which the host waits for the device, and how often it does so."""

    line: str
    count: int


@dataclass(frozen=True)
class PhaseRecord:
    """One phase of a step on one rank.

    Attributes:
        name: One of `PHASES`.
        start_bytes: Bytes on the device when the phase starts.
        peak_bytes: Most bytes on the device during the phase.
        peak_by_kind: The bytes of the peak by kind: weights, gradients, optimizer, activations, ...
        holders: The five lines that hold most at the peak.
        traffic: Communication, by group and collective.
        waits: Where the host waits for the device.
        matrix_flops: Floating-point operations of matrix products and attention, by dtype name
            (`bfloat16`, `float32`, ...); a multiplication and an addition count as two.
        touched_bytes: Bytes that kernels other than matrix products and attention read and write on
            the device.
        host_copy_bytes: Bytes copied between host and device, both ways.
        kernels: Number of kernels.
    """

    name: str
    start_bytes: int
    peak_bytes: int
    peak_by_kind: Mapping[str, int]
    holders: tuple[Holder, ...]
    traffic: tuple[Traffic, ...]
    waits: tuple[Wait, ...]
    matrix_flops: Mapping[str, int]
    touched_bytes: int
    host_copy_bytes: int
    kernels: int

    def to_json(self) -> dict[str, Any]:
        """The record as plain dictionaries, lists, strings and integers."""
        return _plain(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PhaseRecord:
        """The record of which `value` is `to_json`."""
        return cls(
            **{
                **value,
                "peak_by_kind": dict(value["peak_by_kind"]),
                "holders": tuple(Holder(**each) for each in value["holders"]),
                "traffic": tuple(Traffic(**each) for each in value["traffic"]),
                "waits": tuple(Wait(**each) for each in value["waits"]),
                "matrix_flops": dict(value["matrix_flops"]),
            }
        )


@dataclass(frozen=True)
class RankRecord:
    """The phases of one rank.

    Attributes:
        rank: Global rank.
        role: What sets the rank apart: "first stage", "middle stage", "last stage", "owner of the
            subspace", or "all stages" without pipeline parallelism.
        phases: In the order of `PHASES`.
    """

    rank: int
    role: str
    phases: tuple[PhaseRecord, ...]

    def to_json(self) -> dict[str, Any]:
        """The record as plain dictionaries, lists, strings and integers."""
        return _plain(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RankRecord:
        """The record of which `value` is `to_json`."""
        phases = tuple(PhaseRecord.from_json(each) for each in value["phases"])
        return cls(value["rank"], value["role"], phases)


def _plain(value: Any) -> Any:
    """Dataclasses and tuples as what `json.dumps` and `json.loads` give back unchanged."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    return value
