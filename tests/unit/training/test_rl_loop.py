"""What the loop reads from checkpoints."""

from __future__ import annotations

from megatron_resrl.training.rl_loop import prompts_in_flight


def test_prompts_in_flight_reads_checkpoints_of_all_versions() -> None:
    assert prompts_in_flight({"in_flight": [[3, 1]]}) == [[3, 1]]
    assert prompts_in_flight({"begun": [[2]], "subspace_method": "rows"}) == [[2]]
    assert prompts_in_flight({}) == []
