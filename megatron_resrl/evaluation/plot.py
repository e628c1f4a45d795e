"""Values with their intervals as a picture. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from megatron_resrl.errors import InputError
from megatron_resrl.evaluation.report import Intervals, shown_metrics
from megatron_resrl.evaluation.results import SetResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXTRA = "pip install 'megatron-resrl[plot]'"


@dataclass(frozen=True)
class Points:
    """Values of one kind, each in a row of its own."""

    label: str
    values: Mapping[str, float]
    """Row -> value."""
    intervals: Mapping[str, tuple[float, float]]
    """Row -> its interval, where it has one."""


def has_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    return find_spec("matplotlib") is not None


def new_figure(panels: int, rows: int) -> tuple[Figure, Sequence[Any]]:
    """A figure with panels side by side that share their rows, and the panels.

    Raises:
        InputError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(f"a picture needs matplotlib: {EXTRA}") from error
    figure = Figure(figsize=(3.2 * panels, 1.2 + 0.4 * rows))
    return figure, figure.subplots(1, panels, sharey=True, squeeze=False)[0]


def draw_points(panel: Any, rows: Sequence[str], points: Points, shift: float = 0.0) -> None:
    """Draws values with their intervals.

    Args:
        panel: Of `new_figure`.
        rows: Names of the rows, from below.
        points: The values.
        shift: How far above their row they are, in rows.
    """
    panel.set_yticks(range(len(rows)), rows, parse_math=False)
    there = [row for row in rows if row in points.values]
    values = [points.values[row] for row in there]
    ends = [points.intervals.get(row, (points.values[row],) * 2) for row in there]
    panel.errorbar(
        values,
        [rows.index(row) + shift for row in there],
        xerr=[
            [value - low for value, (low, _) in zip(values, ends, strict=True)],
            [high - value for value, (_, high) in zip(values, ends, strict=True)],
        ],
        fmt="o",
        label=points.label,
    )


def save_figure(figure: Figure, path: str) -> None:
    """Writes a picture; the ending of the path says its format.

    Raises:
        ValueError: Matplotlib does not write such files.
    """
    figure.savefig(path, bbox_inches="tight", dpi=150)


def plot_evaluation(results: Sequence[SetResult], intervals: Intervals, path: str) -> None:
    """Draws mean score, pass@k, pass^k and cons@k of every set with their intervals.

    Args:
        results: At least one.
        intervals: Of their metrics.
        path: Of the picture.
    """
    rows = [result.questions.name for result in reversed(results)]
    kinds = ["avg", *shown_metrics(results)]
    figure, (panel,) = new_figure(1, len(rows) * (1 + len(kinds) // 3))
    for number, kind in enumerate(kinds):
        names = {
            each.questions.name: each.average if kind == "avg" else kind
            for each in results
            if kind == "avg" or kind in each.values
        }
        values = {
            each.questions.name: each.metrics()[names[each.questions.name]]
            for each in results
            if each.questions.name in names
        }
        own = {row: intervals[row][name] for row, name in names.items() if name in intervals[row]}
        draw_points(panel, rows, Points(kind, values, own), -0.6 * number / len(kinds))
    panel.set_xlabel("mean over questions")
    panel.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)
