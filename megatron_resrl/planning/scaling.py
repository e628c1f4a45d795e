"""Records of many groups from records of few: what is counted grows by as much per group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from megatron_resrl.planning.records import PhaseRecord, Traffic, Wait


def extrapolated(
    first: PhaseRecord, last: PhaseRecord, *, few: int, many: int, wanted: int
) -> PhaseRecord:
    """The phase with `wanted` groups; memory is that of `last`.

    Args:
        first: With `few` groups.
        last: With `many`; if they are as many, counts are in proportion to the groups.
        few: At least 1.
        many: At least `few`.
        wanted: At least 1.
    """
    if few == many:
        return combined([(last, wanted / many)], like=last)
    more = (wanted - many) / (many - few)
    return combined([(first, -more), (last, 1 + more)], like=last)


def with_more_activations(phase: PhaseRecord, more: int) -> PhaseRecord:
    """The phase with so many bytes of activations more at its peak."""
    kinds = dict(phase.peak_by_kind)
    if more:
        kinds["activations"] = kinds.get("activations", 0) + more
    return replace(phase, peak_bytes=phase.peak_bytes + more, peak_by_kind=kinds)


def combined(parts: Iterable[tuple[PhaseRecord, float]], like: PhaseRecord) -> PhaseRecord:
    """Sum of the counts of phases, each times a factor; all else as `like`."""
    calls: defaultdict[tuple[str, int, str], float] = defaultdict(float)
    sent: defaultdict[tuple[str, int, str], float] = defaultdict(float)
    waits: defaultdict[str, float] = defaultdict(float)
    flops: defaultdict[str, float] = defaultdict(float)
    totals: defaultdict[str, float] = defaultdict(float)
    for phase, factor in parts:
        for each in phase.traffic:
            key = (each.group, each.size, each.collective)
            calls[key] += factor * each.calls
            sent[key] += factor * each.bytes
        for wait in phase.waits:
            waits[wait.line] += factor * wait.count
        for name, count in phase.matrix_flops.items():
            flops[name] += factor * count
        for name in ("touched_bytes", "host_copy_bytes", "kernels"):
            totals[name] += factor * getattr(phase, name)
    return replace(
        like,
        traffic=tuple(
            Traffic(*key, round(count), round(sent[key]))
            for key, count in sorted(calls.items())
            if round(count) > 0
        ),
        waits=tuple(
            Wait(line, round(count))
            for line, count in sorted(waits.items(), key=lambda item: -item[1])
            if round(count) > 0
        ),
        matrix_flops={name: round(count) for name, count in flops.items() if round(count) > 0},
        touched_bytes=max(0, round(totals["touched_bytes"])),
        host_copy_bytes=max(0, round(totals["host_copy_bytes"])),
        kernels=max(0, round(totals["kernels"])),
    )
