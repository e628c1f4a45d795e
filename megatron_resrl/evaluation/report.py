"""An evaluation as text for people: every metric, then one row of a table for each set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from megatron_resrl.evaluation.results import SetResult
from megatron_resrl.observe.text_table import columns

Intervals = Mapping[str, Mapping[str, tuple[float, float]]]
"""Set -> metric -> its interval, see `SetResult.intervals`."""

SHARES = ("pass@", "pass^", "cons@")
"""Beginnings of metrics that have a column, beside the mean score."""


def evaluation_lines(results: Sequence[SetResult], intervals: Intervals) -> Iterator[str]:
    """All that an evaluation found, for a terminal."""
    for result in results:
        name = result.questions.name
        for metric, value in result.metrics().items():
            low_high = intervals[name].get(metric)
            shown = "" if low_high is None else f"  {_interval(low_high)}"
            yield f"eval/{name}/{metric}: {value:.4f}{shown}"
    yield ""
    yield from columns(_rows(results, intervals))


def shown_metrics(results: Sequence[SetResult]) -> list[str]:
    """Metrics of any of the sets that are shares of questions, in their order."""
    names = dict.fromkeys(name for result in results for name in result.values)
    return sorted(
        (name for name in names if name.startswith(SHARES)),
        key=lambda name: (SHARES.index(name[:5]), int(name[5:])),
    )


def _rows(results: Sequence[SetResult], intervals: Intervals) -> list[list[str]]:
    shares = shown_metrics(results)
    rows = [["set", "questions", "samples", "avg", "interval", *shares, "truncated", "tokens"]]
    for result in results:
        metrics, own = result.metrics(), intervals[result.questions.name]
        average = result.average
        rows.append(
            [
                result.questions.name,
                f"{metrics['questions']:.0f}",
                str(result.questions.settings.samples_per_prompt),
                f"{metrics[average]:.4f}",
                _interval(own[average]) if average in own else "",
                *(f"{metrics[name]:.4f}" if name in metrics else "" for name in shares),
                f"{metrics['truncated']:.3f}",
                f"{metrics['response_length']:.0f}",
            ]
        )
    return rows


def _interval(low_high: tuple[float, float]) -> str:
    return "[{:.4f}, {:.4f}]".format(*low_high)
