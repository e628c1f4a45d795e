"""Metrics of memory: what the largest rank took."""

from __future__ import annotations

from megatron_resrl.observe.metric_names import find_metric
from megatron_resrl.training.memory import peak_metrics


def test_peak_metrics_name_the_largest_rank() -> None:
    metrics = peak_metrics([[5, 3, 0, 5], [9, 2, 0, 9], [4, 4, 0, 1]], ("rollout", "sync", "save"))
    assert metrics == {
        "memory/peak_bytes": 9,
        "memory/rank": 1,
        "memory/rollout_peak_bytes": 4,
        "memory/save_peak_bytes": 9,
    }
    assert all(find_metric(name) for name in metrics)
