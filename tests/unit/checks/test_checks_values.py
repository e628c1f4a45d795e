"""Numbers out of range are refused with the range."""

from __future__ import annotations

import math

import pytest

OUT_OF_RANGE = [
    ("seed", -1, "at least 0"),
    ("seed", 10**20, "below 2^63"),
    ("rollout.max_running_samples", 10**20, "below 2^63"),
    ("optimizer.lr_warmup_steps", -(10**20), "below 2^63"),
    ("steps", 0, "at least 1"),
    ("model.attention_dropout", 1.0, "below 1"),
    ("parallel.timeout_minutes", 0.0, "above 0"),
    ("optimizer.lr", 0.0, "above 0"),
    ("optimizer.lr", -1e-6, "above 0"),
    ("optimizer.adam_beta2", 1.0, "below 1"),
    ("optimizer.clip_grad", -1.0, "at least 0"),
    ("data.max_prompt_length", 0, "at least 1"),
    ("rollout.group_size", 1, "at least 2"),
    ("rollout.temperature", -1.0, "at least 0"),
    ("rollout.top_p", 0.0, "above 0 and at most 1"),
    ("rollout.top_p", 1.5, "above 0 and at most 1"),
    ("rollout.top_k", -1, "at least 0"),
    ("reward.timeout_s", 0.0, "above 0"),
    ("reward.workers", 0, "at least 1"),
    ("algorithm.clip_low", 1.0, "below 1"),
    ("reward.length_floor", 0.0, "above 0"),
    ("algorithm.clip_high", 0.0, "above 0"),
    ("algorithm.dual_clip", 1.0, "above 1, or null"),
    ("algorithm.micro_batch_size", 0, "at least 1"),
    ("resrl.rank", 0, "at least 1"),
    ("resrl.max_positive_tokens", 3, "at least 4"),
    ("resrl.floor", 1.1, "between 0 and 1"),
    ("optimizer.max_non_finite", 0, "at least 1"),
    ("checkpoint.keep_last", 0, "at least 1"),
    ("checkpoint.keep_every", -1, "at least 0"),
    ("checkpoint.preemption_exit_code", 256, "between 0 and 255"),
    ("evaluation.samples_per_prompt", 0, "at least 1"),
    ("evaluation.top_p", 0.0, "above 0"),
    ("correction.cap", 0.5, "at least 1"),
    ("correction.warn_kl", 0.0, "above 0"),
    ("correction.stop_kl", -1.0, "above 0"),
    ("logging.sample_responses", -1, "at least 0"),
]


@pytest.mark.parametrize(("setting", "value", "right"), OUT_OF_RANGE)
def test_check_ranges_refuses_settings_out_of_range(check, setting, value, right):
    problems = {problem.setting: problem for problem in check(f"--{setting}={value}")}
    assert problems[setting].value == value
    assert right in problems[setting].fix


@pytest.mark.parametrize("text", [".nan", ".inf"])
def test_check_ranges_refuses_a_learning_rate_that_is_nan(refused, text):
    problem = refused(f"--optimizer.lr={text}")
    assert (problem.setting, math.isfinite(problem.value)) == ("optimizer.lr", False)
