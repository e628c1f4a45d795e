"""A run with a time budget ends before its time is over."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil
import pytest

from megatron_resrl.config.durations import seconds_of
from megatron_resrl.platform.job_clock import job_seconds
from megatron_resrl.training.time_budget import TimeBudget


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        (90, 90),
        (1.5, 1.5),
        ("3600", 3600),
        ("2:30", 150),
        ("4:00:00", 4 * 3600),
        ("0:05:00", 300),
        ("1-12:00:00", 36 * 3600),
        ("2-06:30", 54.5 * 3600),
    ],
)
def test_seconds_of_reads_clocks_and_numbers(duration, seconds):
    assert seconds_of(duration) == seconds


@pytest.mark.parametrize("duration", [0, -1, "soon", "", "1:60", "nan", "inf", "1-", "1-4", "0:00"])
def test_seconds_of_refuses_what_is_no_duration(duration):
    with pytest.raises(ValueError, match="no length of time above 0"):
        seconds_of(duration)


def test_job_seconds_count_from_slurms_allocation():
    here = job_seconds({"SLURM_JOB_START_TIME": str(int(time.time()) - 7200)})
    assert 7199 <= here < 7300
    created = psutil.Process(os.getpid()).create_time()
    assert job_seconds({}) == pytest.approx(time.time() - created, abs=5)


def test_time_budget_leaves_room_for_a_step_and_its_save():
    clock = Clock(100.0)
    budget = TimeBudget(200.0, clock)
    assert not budget.is_over()
    clock.now = 130.0
    budget.begin()  # The 30 s of the start are no step's.
    clock.now = 140.0
    budget.finish_step(save_s=0.0)
    clock.now = 152.0
    budget.finish_step(save_s=15.0)
    # A step takes up to 12 s and a save 15 s: 173 is the last moment for both.
    clock.now = 173.0
    assert not budget.is_over()
    clock.now = 173.5
    assert budget.is_over()


def test_time_budget_forgets_long_steps_of_long_ago():
    clock = Clock()
    budget = TimeBudget(100.0, clock)
    for seconds in (30.0, *(1.0,) * 10):
        clock.now += seconds
        budget.finish_step(save_s=0.0)
    clock.now = 98.0
    assert not budget.is_over()


def test_time_budget_of_none_never_ends():
    clock = Clock()
    budget = TimeBudget(None, clock)
    clock.now = 1e9
    budget.finish_step(save_s=1e9)
    assert not budget.is_over()
