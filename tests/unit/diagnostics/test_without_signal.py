"""Updates with nothing to learn from: the cause is said once, then they are counted."""

from __future__ import annotations

import logging

import pytest

from megatron_resrl.data.prompts import Prompt, PromptRecord
from megatron_resrl.diagnostics.without_signal import WithoutSignal, causes
from megatron_resrl.rollout.collect import Sample
from megatron_resrl.rollout.engine import Response


def sample(
    *, reason: str = "stop", score: float = 0.0, excluded: bool = False, timed_out: bool = False
) -> Sample:
    record = PromptRecord(0, [{"role": "user", "content": "q"}], "4", "test", {})
    response = Response((1, 2), (-1.0, -1.0), reason)
    return Sample(
        0, Prompt(record, (1, 2)), response, "", score, score, timed_out, excluded=excluded
    )


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (
            [sample(reason="length")] * 16,
            "all 16 responses were cut off at rollout.max_response_length = 24 and all scores are "
            "0",
        ),
        (
            [sample(reason="length")] * 3 + [sample()],
            "3 of 4 responses were cut off at rollout.max_response_length = 24 and all scores are "
            "0",
        ),
        ([sample(score=1.0)] * 4, "all scores are 1"),
        (
            [sample(score=1.0)] * 4 + [sample(score=0.5)] * 4,
            "the rewards of every group are equal",
        ),
        (
            [
                sample(reason="length", excluded=True),
                sample(reason="length", excluded=True, score=1.0),
            ],
            "all 2 responses were cut off at rollout.max_response_length = 24 and all 2 are left "
            "out by reward.overlong = mask",
        ),
        (
            [sample(timed_out=True)] * 3 + [sample()],
            "grading 3 of 4 took longer than reward.timeout_s and all scores are 0",
        ),
    ],
)
def test_without_signal_names_cause_count_and_setting(samples, said):
    assert " and ".join(causes(samples, 24).values()) == said


def test_without_signal_says_a_cause_once_and_counts_it(caplog):
    signal = WithoutSignal(24)
    cut_off = [sample(reason="length") for _ in range(8)]
    with caplog.at_level(logging.WARNING):
        for step in range(1, 9):
            signal.count(step, cut_off, [[0, 1, 2, 3], [4, 5, 6, 7]])
        signal.count(9, [sample(score=1.0)] * 4, [[0, 1, 2, 3]])
        signal.count(10, [sample(score=1.0)] * 4, [])
    messages = [record.getMessage() for record in caplog.records]
    assert "step 1: " in messages[0]
    assert "all 4 responses were cut off at rollout.max_response_length = 24" in messages[0]
    assert [m.split(" updates")[0] for m in messages[1:-1]] == [
        "step 1: 2",
        "step 2: 4",
        "step 4: 8",
        "step 8: 16",
    ]
    assert "all scores are 1" in messages[-1]
