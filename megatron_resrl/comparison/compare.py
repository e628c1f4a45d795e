"""Compares evaluations of several arms with that of the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_resrl.comparison.arms import Arm, CommonSet, common_sets, values_of
from megatron_resrl.comparison.budgets import budget_differences, response_lengths
from megatron_resrl.comparison.overlap import training_overlap
from megatron_resrl.comparison.statistics import (
    Difference,
    holm,
    paired_differences,
    smallest_difference,
)
from megatron_resrl.evaluation.bootstrap import Numbers

MEAN = "mean of sets"
"""Name of what is said of all sets together."""


def compare(
    arms: Sequence[Arm], *, metric: str = "avg", sets: Sequence[str] = (), seed: int = 0
) -> dict[str, Any]:
    """Compares every arm with the first, question by question.

    Args:
        arms: At least two; the first is the baseline.
        metric: `avg`, or a name of `question_values` such as `pass@8`.
        sets: Names; empty: all that the runs share.
        seed: Of the resamples.

    Returns:
        What docs/evaluation.md describes: `sets`, `budgets`, `overlap`, plain values.

    Raises:
        InputError: The evaluations cannot be compared.
    """
    common = common_sets(arms, sets)
    values = {arm.name: [values_of(arm, each, metric) for each in common] for arm in arms}
    baseline, *others = arms
    differences = {
        arm.name: paired_differences(values[baseline.name], values[arm.name], (seed, number))
        for number, arm in enumerate(others)
    }
    blocks = [_block(each, number, arms, values, differences) for number, each in enumerate(common)]
    if len(common) > 1:
        means = {name: [_mean(several)] for name, several in values.items()}
        blocks.append(
            {"set": MEAN, "arms": _rows(arms, means, 0, {n: d[-1] for n, d in differences.items()})}
        )
    return {
        "metric": metric,
        "baseline": baseline.name,
        "sets": blocks,
        "budgets": budget_differences(arms, common),
        "overlap": training_overlap(arms, common),
    }


def _block(
    common: CommonSet,
    number: int,
    arms: Sequence[Arm],
    values: dict[str, list[Numbers]],
    differences: dict[str, list[Difference]],
) -> dict[str, Any]:
    own = {name: several[number] for name, several in differences.items()}
    rows = _rows(arms, values, number, own)
    lengths = response_lengths(arms, common)
    return {
        "set": common.name,
        "questions": len(common.rows),
        "left_out": common.left_out,
        "arms": [row | {"response_length": lengths[row["arm"]]} for row in rows],
    }


def _rows(
    arms: Sequence[Arm],
    values: dict[str, list[Numbers]],
    number: int,
    differences: dict[str, Difference],
) -> list[dict[str, Any]]:
    corrected = dict(
        zip(differences, holm([each.p_value for each in differences.values()]), strict=True)
    )
    rows = []
    for arm in arms:
        row: dict[str, Any] = {
            "arm": arm.name,
            "runs": len(arm.runs),
            "value": float(values[arm.name][number].mean()),
        }
        if found := differences.get(arm.name):
            row |= {
                "difference": found.estimate,
                "interval": [found.low, found.high],
                "p_value": found.p_value,
                "p_holm": corrected[arm.name],
                "smallest_difference": smallest_difference(found.standard_error, len(differences)),
            }
        rows.append(row)
    return rows


def _mean(several: Sequence[Numbers]) -> Numbers:
    """The mean over sets of the mean over runs and questions, [1, 1]."""
    return np.array([[sum(each.mean() for each in several) / len(several)]])
