"""Phase timers."""

from __future__ import annotations

import time

import pytest

from megatron_resrl.observe.timers import PhaseTimers
from megatron_resrl.platform.meetings import meeting, meetings_recorded


class Clock:
    """A clock that moves only when told, so that sums can be compared exactly."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def pass_seconds(self, seconds: float) -> None:
        self.now += seconds


def test_timers_count_inner_phases_once_and_add_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    timers = PhaseTimers()
    clock.pass_seconds(1)
    with timers.phase("rollout"):
        clock.pass_seconds(2)
        with timers.phase("sync"):
            clock.pass_seconds(4)
        clock.pass_seconds(8)
    with timers.phase("rollout"):
        clock.pass_seconds(16)
    clock.pass_seconds(32)
    assert (
        timers.collect()
        == {"sync": 4.0, "rollout": 26.0, "other": 33.0}
        == {
            "rollout": 26.0,
            "sync": 4.0,
            "other": 33.0,
        }
    )


def test_timers_collect_starts_a_step_inside_a_phase(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    timers = PhaseTimers()
    with timers.phase("update"):
        clock.pass_seconds(3)
        assert timers.collect() == {"update": 3.0, "other": 0.0}
        clock.pass_seconds(5)
    assert timers.collect() == {"update": 5.0, "other": 0.0}
    assert timers.collect() == {"other": 0.0}


def test_current_phase_is_the_innermost_also_after_errors() -> None:
    timers = PhaseTimers()
    assert timers.current_phase() == "other"
    with timers.phase("reward"):
        with timers.phase("pool"):
            assert timers.current_phase() == "pool"
        assert timers.current_phase() == "reward"
    with pytest.raises(KeyError), timers.phase("update"):
        {}["lost"]
    assert timers.current_phase() == "other"
    assert set(timers.collect()) == {"pool", "reward", "update", "other"}


def test_timers_count_real_time_for_its_phase() -> None:
    timers = PhaseTimers()
    with timers.phase("rollout"):
        time.sleep(0.05)
    assert timers.collect()["rollout"] >= 0.05


class DeviceClock:
    """A clock whose marks are only reached when somebody asks for the distance of two."""

    def __init__(self) -> None:
        self.marks = 0
        self.waits = 0

    def mark(self) -> int:
        self.marks += 1
        return self.marks

    def seconds(self, earlier: int, later: int) -> float:
        self.waits += 1
        return float(later - earlier)


def test_timers_mark_borders_and_wait_only_at_the_end() -> None:
    clock = DeviceClock()
    timers = PhaseTimers(clock)
    for _ in range(3):
        with timers.phase("scoring"), timers.phase("subspace"):
            pass
    assert clock.waits == 0
    # Each pass: a mark when either phase begins and ends; one more when the step ends.
    assert timers.collect() == {"scoring": 6.0, "subspace": 3.0, "other": 4.0}
    assert clock.marks == 14


def test_timers_tell_waits_from_a_phases_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    timers = PhaseTimers()
    with timers.phase("update"):
        clock.pass_seconds(1)
        with meetings_recorded(timers.waiting):
            with meeting():
                clock.pass_seconds(2)
                with meeting():
                    clock.pass_seconds(4)
            clock.pass_seconds(8)
        with meeting():  # Nobody records it.
            clock.pass_seconds(16)
    assert timers.collect() == {"update": 31.0, "other": 0.0}
    assert timers.waited == {"update": 6.0}
    timers.collect()
    assert timers.waited == {}


class Memory:
    """Memory whose peak since the last question is what was set."""

    peak = 0

    def take(self) -> int:
        peak, self.peak = self.peak, 0
        return peak


def test_timers_count_peaks_for_the_innermost_phase() -> None:
    memory = Memory()
    timers = PhaseTimers(memory=memory)
    memory.peak = 1
    with timers.phase("scoring"):
        memory.peak = 2
        with timers.phase("subspace"):
            memory.peak = 8
        memory.peak = 4
    with timers.phase("scoring"):
        memory.peak = 3
    assert timers.take_peaks() == {"other": 1, "scoring": 4, "subspace": 8}
    assert timers.take_peaks() == {"other": 0}


def test_timers_without_memory_have_no_peaks() -> None:
    timers = PhaseTimers()
    with timers.phase("update"):
        pass
    assert timers.take_peaks() == {}
