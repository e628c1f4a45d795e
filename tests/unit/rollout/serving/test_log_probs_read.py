"""What servers write for a log-probability that is not a number is read as one."""

from __future__ import annotations

import math

import pytest

from megatron_resrl.rollout.engine import SamplingParams
from megatron_resrl.rollout.serving.requests import read_response


@pytest.mark.parametrize("written", [None, -9999.0, float("nan")])
def test_read_response_reads_what_stands_for_nan(written):
    entries = [{"logprob": -0.5}, {"logprob": written}, {"logprob": -40.0}]
    choice = {"token_ids": [5, 6, 7], "finish_reason": "length", "logprobs": {"content": entries}}
    sampling = SamplingParams(max_new_tokens=3, stop_token_ids=(1,))
    found = read_response({"choices": [choice]}, sampling, version=2).log_probs
    assert (found[0], found[2]) == (-0.5, -40.0)
    assert math.isnan(found[1])
