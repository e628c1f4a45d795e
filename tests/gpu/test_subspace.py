"""Token weights of a GPU are those of the CPU, by both methods."""

from __future__ import annotations

import math

import pytest
from distributed.subspace.ranks_subspace import METHODS, cases
from gpu.measured import Measured

from megatron_resrl.subspace import token_weights_with_reports

pytestmark = pytest.mark.gpu

WEIGHTS = 1e-5
"""As between layouts: sums in another order."""
ENERGY = 1e-6
"""Share of the variance inside the subspace."""


@pytest.mark.parametrize("method", METHODS)
def test_token_weights_equal_the_cpus(reference, cuda: bool, measured: Measured, method) -> None:
    weights_apart, energy_apart = {}, {}
    for name, case in cases(reference / "golden"):
        hidden, *rest = case.batch
        settings = {
            "rank": case.settings.rank,
            "max_positive_tokens": case.settings.max_positive_tokens,
            "method": method,
        }
        on_device = hidden.to("cuda" if cuda else "cpu")
        weights, reports = token_weights_with_reports(on_device, *rest, **settings)
        expected, of_cpu = token_weights_with_reports(hidden, *rest, **settings)
        weights_apart[name] = float((weights.cpu() - expected).abs().max())
        assert [each.skipped for each in reports.values()] == [
            each.skipped for each in of_cpu.values()
        ]
        energy_apart[name] = max(
            abs(report.energy - of_cpu[group].energy)
            for group, report in reports.items()
            if report.skipped is None
        )
    for quantity, apart, limit in (
        ("weights", weights_apart, WEIGHTS),
        ("energy", energy_apart, ENERGY),
    ):
        worst = max(apart, key=lambda name: math.inf if apart[name] != apart[name] else apart[name])
        measured.at_most(f"{quantity}.{worst}", apart[worst], limit)
