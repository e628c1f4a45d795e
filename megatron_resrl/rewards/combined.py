"""Grades by several functions: weighed, and chosen by the row's data source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megatron_resrl.rewards.grader import Grade, GradingTask, ResponseGrader
from megatron_resrl.rewards.parts import Part, require_judged


class CombinedGrader:
    """The functions of a reward, each with its grader.

    Args:
        parts: At least one; graders may be shared.
    """

    def __init__(self, parts: Sequence[tuple[Part, ResponseGrader]]) -> None:
        self.parts = tuple(parts)

    def grade(self, tasks: Sequence[GradingTask]) -> list[Grade]:
        """Grades responses by all functions that judge their rows.

        Args:
            tasks: Any number.

        Returns:
            Their grades, in order. The score is that of the first function that judges the row,
            `combined` the sum of all, each times its weight. What a function could not grade in
            time or memory is 0 in both, and marked.

        Raises:
            RewardError: A function failed.
            SettingError: No function judges a row.
        """
        require_judged([part for part, _ in self.parts], [task.data_source for task in tasks])
        found: list[list[tuple[Part, Grade]]] = [[] for _ in tasks]
        for part, grader in self.parts:
            places = [place for place, task in enumerate(tasks) if part.judges(task.data_source)]
            grades = grader.grade([tasks[place] for place in places])
            for place, grade in zip(places, grades, strict=True):
                found[place].append((part, grade))
        return [_combined(several) for several in found]


def _combined(several: Sequence[tuple[Part, Grade]]) -> Grade:
    return replace(
        several[0][1],
        combined=sum(part.weight * grade.reward for part, grade in several),
        parts={part.label: grade.reward for part, grade in several},
        timed_out=any(grade.timed_out for _, grade in several),
        killed=any(grade.killed for _, grade in several),
        unanswered=any(grade.unanswered for _, grade in several),
    )
