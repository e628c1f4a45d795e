"""docs/metrics.md and the table of metrics in the code are the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_resrl.observe.metric_names import METRICS, find_metric, metrics_table
from megatron_resrl.subspace.report import SKIP_REASONS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"


def test_metrics_page_has_the_table_of_the_code() -> None:
    table = "".join(line for line in PAGE.open() if line.startswith("|"))
    assert table == metrics_table(), "run python tools/metrics_table.py"


def test_metrics_have_a_meaning_and_a_unit_each() -> None:
    assert all(metric.meaning and metric.unit for metric in METRICS.values())
    assert not [name for name, metric in METRICS.items() if "|" in metric.meaning + metric.unit]


@pytest.mark.parametrize(
    ("logged", "name"),
    [
        ("loss", "loss"),
        ("eval/aime24/avg@16", "eval/<set>/avg@<n>"),
        ("eval/a/b/pass@8", "eval/<set>/pass@<k>"),
        ("eval/held.out/timeouts", "eval/<set>/timeouts"),
    ],
)
def test_find_metric_fills_in_the_names_of_a_run(logged: str, name: str) -> None:
    assert find_metric(logged) is METRICS[name]


@pytest.mark.parametrize("name", ["los", "loss2", "eval/aime24", "eval//avg@2", "time/", ""])
def test_find_metric_knows_nothing_else(name: str) -> None:
    assert find_metric(name) is None


def test_metrics_have_every_reason_to_skip_a_group() -> None:
    assert {f"resrl/skipped_{reason}" for reason in SKIP_REASONS} <= set(METRICS)
