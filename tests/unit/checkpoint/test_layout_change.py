"""A change of the layout in words."""

from __future__ import annotations

import pytest

from megatron_resrl.checkpoint.policy_state import layout_change

TP, PP = "tensor_model_parallel_size", "pipeline_model_parallel_size"
EP, ETP = "expert_model_parallel_size", "expert_tensor_parallel_size"


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({"world_size": 2}, {TP: 2, "world_size": 2}, "TP1 x DP2 -> TP2"),
        ({TP: 2, PP: 2, "world_size": 8}, {PP: 4, "world_size": 4}, "TP2 x PP2 x DP2 -> TP1 x PP4"),
        ({EP: 4, ETP: None, "world_size": 4}, {"world_size": 1}, "EP4 x DP4 -> EP1"),
        ({"world_size": 2}, {"world_size": 1}, "DP2 -> DP1"),
    ],
)
def test_layout_change_names_only_sizes_that_matter(before, now, words):
    assert layout_change(before, now) == words
