"""Records of many groups from records of few: what is counted grows by as much per group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from megatron_resrl.planning.records import PhaseRecord, Traffic, Wait


def grown(one: PhaseRecord, many: PhaseRecord, groups: int, wanted: int) -> PhaseRecord:
    """The phase with `wanted` groups.

    Memory is that of `many`: the peak does not depend on how often the same work is done.

    Args:
        one: With one group.
        many: With `groups`; if that is one, too, all of its counts grow with the groups.
        groups: At least 1.
        wanted: At least 1.
    """
    if groups == 1:
        return combined([(many, wanted)], like=many)
    more = (wanted - groups) / (groups - 1)
    return combined([(one, -more), (many, 1 + more)], like=many)


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
