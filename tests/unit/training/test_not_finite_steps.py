"""When gradients that are not finite end a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_resrl.config.schema import OptimizerConfig
from megatron_resrl.training.not_finite import NotFinite, NotFiniteSteps

DUMP = Path("not_finite/step_000005.jsonl")


@pytest.mark.setting("optimizer.max_non_finite")
def test_skip_allows_all_but_the_last_of_a_row():
    steps = NotFiniteSteps(OptimizerConfig(max_non_finite=3))
    for step, finite in enumerate((False, False, True, False, False)):
        steps.count(step, finite, DUMP)
    with pytest.raises(NotFinite, match=r"step 5: .*max_non_finite = 3 such steps") as caught:
        steps.count(5, False, DUMP)
    assert str(DUMP) in str(caught.value)


@pytest.mark.setting("optimizer.non_finite")
def test_stop_ends_the_run_at_the_first():
    steps = NotFiniteSteps(OptimizerConfig(non_finite="stop"))
    steps.count(1, True, DUMP)
    with pytest.raises(NotFinite, match=r"step 2: .*optimizer\.non_finite = stop"):
        steps.count(2, False, DUMP)


@pytest.mark.setting("optimizer.non_finite")
def test_rollback_is_asked_for_after_a_row():
    steps = NotFiniteSteps(OptimizerConfig(non_finite="rollback", max_non_finite=2))
    assert steps.count(1, False, DUMP) is None
    assert steps.count(2, True, DUMP) is None
    assert steps.count(3, False, DUMP) is None
    reason = steps.count(4, False, DUMP)
    assert reason is not None
    assert "not finite in 2 steps in a row" in reason
