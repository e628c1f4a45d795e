"""What is compared: arms, each with one run or with several that differ by their seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_resrl.comparison.evaluations import Evaluation, read_evaluation
from megatron_resrl.errors import InputError
from megatron_resrl.evaluation.bootstrap import Numbers


@dataclass(frozen=True)
class Arm:
    """One method."""

    name: str
    runs: tuple[Evaluation, ...]
    """At least one; their seeds differ."""


@dataclass(frozen=True)
class CommonSet:
    """A set that all runs have been asked."""

    name: str
    rows: tuple[int, ...]
    """Of the questions that all runs have answered."""
    left_out: int
    """Questions that only some runs have answered."""


def read_arms(texts: Sequence[str]) -> list[Arm]:
    """Arms as a command line names them: `DIR`, `DIR,DIR` or `NAME=DIR,DIR`.

    Raises:
        InputError: There are fewer than two, two have one name, or an evaluation cannot be read.
    """
    arms = []
    for text in texts:
        name, equals, places = text.partition("=")
        if not equals or Path(text).exists():
            name, places = "", text
        several = [places] if Path(places).exists() else places.split(",")
        runs = tuple(read_evaluation(each) for each in several if each)
        if not runs:
            raise InputError(f"compare: {text!r} names no folder; write NAME=DIR,DIR")
        arms.append(Arm(name or Path(several[0]).resolve().name, runs))
    if len(arms) < 2:
        raise InputError("compare: give at least two evaluations, the baseline first")
    names = [arm.name for arm in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"compare: two arms are called {twice[0]!r}; write NAME=DIR,DIR, with the runs of one "
            "arm behind one name"
        )
    return arms


def common_sets(arms: Sequence[Arm], wanted: Sequence[str]) -> list[CommonSet]:
    """The sets that all runs have, with the questions that all have answered.

    Args:
        arms: With their runs.
        wanted: Names of sets; empty: all that there are.

    Raises:
        InputError: There is none, a wanted one is missing, or a row holds different questions.
    """
    runs = [run for arm in arms for run in arm.runs]
    names = [name for name in runs[0].sets if all(name in run.sets for run in runs)]
    for name in wanted:
        if name not in names:
            raise InputError(f"--sets {name}: not all runs have it; they share {names}")
    if not names:
        listed = "; ".join(f"{run.place}: {', '.join(run.sets)}" for run in runs)
        raise InputError(f"compare: no set was evaluated in all runs ({listed})")
    return [_common(name, runs) for name in (wanted or names)]


def _common(name: str, runs: Sequence[Evaluation]) -> CommonSet:
    sets = [run.sets[name] for run in runs]
    rows = sorted(set.intersection(*(set(each.records) for each in sets)))
    for row in rows:
        first = sets[0].records[row]["ground_truth"]
        for run, each in zip(runs, sets, strict=True):
            if each.records[row]["ground_truth"] != first:
                raise InputError(
                    f"the set {name}: row {row} has the answer {first!r} in {runs[0].place} and "
                    f"{each.records[row]['ground_truth']!r} in {run.place}; compare evaluations of "
                    "the same file"
                )
    if not rows:
        raise InputError(f"the set {name}: no question was answered in all runs")
    return CommonSet(
        name, tuple(rows), len(set().union(*(each.records for each in sets))) - len(rows)
    )


def values_of(arm: Arm, common: CommonSet, metric: str) -> Numbers:
    """[runs, questions] of a metric, see `SetResponses.values`."""
    rows = common.rows
    return np.array([run.sets[common.name].values(metric, rows) for run in arm.runs])
