from __future__ import annotations

import json

import pytest

from megatron_resrl.subspace import GroupReport, summarise


def test_summarise_counts_skips_and_averages_over_tokens():
    reports = [
        GroupReport(None, 50, 10, 0.5, 0.1, 0.3, 0.8, 40, 0.2, 9.0, 30.0),
        GroupReport(None, 50, 30, 0.7, 0.3, 0.3, 0.6, 20, 0.4, 3.0, 10.0, degenerate=True),
        GroupReport("no_positive", 0, 30),
        GroupReport("few_positive_tokens", 3, 30),
    ]
    expected = pytest.approx(
        {
            "resrl/groups": 4,
            "resrl/skipped_fraction": 0.5,
            "resrl/skipped_no_positive": 0.25,
            "resrl/skipped_no_negative": 0,
            "resrl/skipped_few_positive_tokens": 0.25,
            "resrl/degenerate_fraction": 0.25,
            "resrl/mean_weight": 0.65,
            "resrl/residual_q_low": 0.2,
            "resrl/residual_q_high": 0.3,
            "resrl/energy": 0.7,
            "resrl/rank": 30,
            "resrl/spectrum_top_energy": 0.3,
            "resrl/spectrum_condition": 6,
            "resrl/spectrum_effective_rank": 20,
        }
    )
    assert summarise(reports, spectrum=True) == expected
    assert set(summarise(reports)) == {n for n in expected.expected if "spectrum" not in n}


def test_summarise_of_skipped_groups_gives_plain_numbers():
    for reports in ([], [GroupReport("no_negative", 9, 0)]):
        metrics = summarise(reports)
        assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
        assert "resrl/mean_weight" not in metrics
