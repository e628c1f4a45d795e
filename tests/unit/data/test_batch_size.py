"""The size of a batch that grows."""

from __future__ import annotations

import pytest
from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator

from megatron_resrl.data.batch_size import batch_size_after, batch_sizes


@pytest.mark.parametrize("rampup", [(2, 2, 40), (4, 1, 7), (8, 4, 1000), (32, 4, 5)])
def test_batch_size_grows_as_megatron_cores(rampup):
    first, increment, length = rampup
    theirs = (
        RampupBatchsizeNumMicroBatchesCalculator(32, 1, 1, False, 0, first, increment, length)
        if first < 32
        else None
    )
    consumed, seen = 0, set()
    for _ in range(200):
        size = batch_size_after(consumed, 32, rampup)
        if theirs is not None:
            theirs.update(consumed, consistency_check=True)
            assert size == theirs.get_current_global_batch_size()
        seen.add(size)
        consumed += size
    assert seen <= set(batch_sizes(32, rampup))
    assert batch_size_after(consumed, 32, rampup) == 32


def test_batch_size_without_a_ramp_up_is_one_number():
    assert batch_size_after(0, 12, None) == batch_size_after(10**9, 12, None) == 12
    assert batch_sizes(12, None) == [12]
    assert batch_sizes(8, (2, 3, 10)) == [2, 5, 8]
