"""Phases of a rank, recorded from the books of a device without numbers."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.planning.records import Holder, PhaseRecord, Traffic, Wait
from megatron_resrl.platform.fake_device.device import FakeDevice
from megatron_resrl.platform.fake_device.ledger import Ledger

_HOLDERS = 5


@dataclass
class _Phase:
    """What is known of a phase; it may be entered several times."""

    start: int
    peak: int = 0
    at_peak: dict[tuple[str, str], int] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)


class Recorder:
    """Books of a device, by phase; what happens in an inner phase counts there alone."""

    def __init__(self, device: FakeDevice) -> None:
        """
        Args:
            device: Whose books are read; its ledger is replaced at each border of phases.
        """
        self._device = device
        self._phases: dict[str, _Phase] = {}
        self._open: list[str] = []
        self._start_segment()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Records the block as a phase of this name, except for phases inside of it."""
        self._end_segment()
        self._open.append(name)
        self._phases.setdefault(name, _Phase(self._device.memory.total))
        try:
            yield
        finally:
            self._end_segment()
            self._open.pop()

    def take(self) -> dict[str, PhaseRecord]:
        """The phases since the last call, by name; none may be open."""
        self._end_segment()
        phases, self._phases = self._phases, {}
        return {name: _record(name, phase) for name, phase in phases.items()}

    def _start_segment(self) -> None:
        self._device.ledger = Ledger()
        self._device.memory.start_peak()

    def _end_segment(self) -> None:
        if self._open:
            phase, memory = self._phases[self._open[-1]], self._device.memory
            phase.ledger.add(self._device.ledger)
            if memory.peak > phase.peak:
                phase.peak, phase.at_peak = memory.peak, memory.at_peak()
        self._start_segment()


class RecordingTimers(PhaseTimers):
    """The timers of a step, whose phases a recorder sees."""

    def __init__(self, recorder: Recorder, names: tuple[str, ...]) -> None:
        """
        Args:
            recorder: Where to.
            names: Phases that are recorded; others count for the phase around them.
        """
        super().__init__()
        self._recorder = recorder
        self._names = names

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """See `PhaseTimers.phase`."""
        recorded = name in self._names
        inner = self._recorder.phase(name) if recorded else contextlib.nullcontext()
        with super().phase(name), inner:
            yield


def _record(name: str, phase: _Phase) -> PhaseRecord:
    ledger = phase.ledger
    by_kind: Counter[str] = Counter()
    for (kind, _), size in phase.at_peak.items():
        by_kind[kind] += size
    largest = sorted(phase.at_peak.items(), key=lambda item: (-item[1], item[0]))
    return PhaseRecord(
        name=name,
        start_bytes=phase.start,
        peak_bytes=phase.peak,
        peak_by_kind=dict(by_kind.most_common()),
        holders=tuple(Holder(line, kind, size) for (kind, line), size in largest[:_HOLDERS]),
        traffic=tuple(
            Traffic(*key, calls, ledger.sent[key]) for key, calls in sorted(ledger.calls.items())
        ),
        waits=tuple(Wait(line, count) for line, count in ledger.waits.most_common()),
        matrix_flops=dict(ledger.matrix_flops),
        touched_bytes=ledger.touched,
        host_copy_bytes=ledger.host_copies,
        kernels=ledger.kernels,
    )
