"""The gates on the mismatch of engine and trainer."""

from __future__ import annotations

import logging
import math

import pytest

from megatron_resrl.config.schema import CorrectionConfig
from megatron_resrl.training.importance import MismatchTooLarge, check_mismatch

GATES = CorrectionConfig(warn_kl=0.1, stop_kl=0.5)


@pytest.mark.parametrize("kl", [0.6, math.inf, math.nan])
def test_stop_kl_ends_the_run_on_all_ranks(kl):
    with pytest.raises(MismatchTooLarge, match=r"correction\.stop_kl = 0\.5") as raised:
        check_mismatch(kl, GATES, 7, warn=False)
    assert raised.value.common
    assert f"step 7: engine and trainer differ by mismatch/kl = {kl:.4g}" in str(raised.value)
    assert "rollout.max_staleness" in str(raised.value)


@pytest.mark.setting("correction.warn_kl")
@pytest.mark.parametrize("kl", [0.2, math.nan])
def test_warn_kl_warns_on_one_rank(kl, caplog):
    settings = CorrectionConfig(warn_kl=0.1, stop_kl=None)
    with caplog.at_level(logging.WARNING):
        check_mismatch(kl, settings, 7, warn=False)
        assert caplog.text == ""
        check_mismatch(kl, settings, 7, warn=True)
    assert len(caplog.records) == 1
    assert "correction.warn_kl = 0.1" in caplog.text


def test_check_mismatch_is_silent_below_or_without_gates(caplog):
    check_mismatch(0.1, GATES, 7, warn=True)
    check_mismatch(math.inf, CorrectionConfig(warn_kl=None, stop_kl=None), 7, warn=True)
    assert caplog.text == ""
