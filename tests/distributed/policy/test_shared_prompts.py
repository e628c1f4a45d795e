"""A prompt that its responses share gives what a copy for each of them gives.

Tolerance: 2e-6 in fp32 on log-probs, entropy, states and gradients, whose sums have another order;
where there are numbers above 1, of the largest one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import run_ranks

TOLERANCE = 2e-6
LAYOUTS = {
    1: ("tp1", "tp1_packed", "tp1_recompute_uniform", "tp1_recompute_selective"),
    2: ("tp2_sp", "pp2", "cp2", "cp2_packed", "dp2", "dp2_ep2", "pp2_vpp2"),
}
SLOW_LAYOUTS = {
    2: (
        *("tp2", "tp2_sp", "pp2", "cp2", "dp2", "dp2_ep2", "tp2_sp_ep2"),
        *("cp2_recompute_selective", "pp2_recompute_uniform"),
    ),
    4: ("tp2_pp2_sp", "cp2_tp2_sp", "cp2_pp2_vpp2", "cp4", "tp2_dp2_sp_ep4"),
}
Differences = dict[str, dict[str, dict[str, float]]]
"""By layout, family and name."""


@pytest.fixture(scope="module")
def found(folder: Path) -> Callable[[str, int], Differences]:
    """Of "default" or "slow" and a number of ranks."""

    @functools.cache
    def of(kind: str, ranks: int) -> Differences:
        script = Path(__file__).with_name("ranks_shared_prompts.py")
        output = run_ranks(script, ranks, folder, kind)
        known: Differences = {}
        for line in output.splitlines():
            one = json.loads(line)
            known.setdefault(one["layout"], {})[one["family"]] = one["found"]
        return known

    return of


def _cases(layouts: dict[int, tuple[str, ...]]) -> list[tuple[int, str]]:
    return [(ranks, name) for ranks, names in layouts.items() for name in names]


@pytest.mark.parametrize(("ranks", "layout"), _cases(LAYOUTS))
def test_shared_prompts_give_what_copies_give(found, ranks: int, layout: str) -> None:
    _compare(found("default", ranks)[layout])


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "layout"), _cases(SLOW_LAYOUTS))
def test_shared_prompts_hold_in_every_layout(found, ranks: int, layout: str) -> None:
    _compare(found("slow", ranks)[layout])


def _compare(families: dict[str, dict[str, float]]) -> None:
    for family, differences in families.items():
        assert differences["fed"] < 0.8, family
        for name in ("log_probs", "entropy", "hidden", "gradients", "grad_norm"):
            assert differences[name] <= TOLERANCE, (family, name, differences[name])
