"""The values that each number may have by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from megatron_resrl.checks.facts import Facts
from megatron_resrl.config.problems import Problem


def _at_least(low: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: low <= value < math.inf, f"at least {low}"


def _between(low: float, high: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: low <= value <= high, f"between {low} and {high}"


_ABOVE_ZERO = (lambda value: 0 < value < math.inf, "above 0")
_PROBABILITY = _between(0, 1)
_POSITIVE_SHARE = (lambda value: 0 < value <= 1, "above 0 and at most 1")
_BELOW_ONE = (lambda value: 0 <= value < 1, "at least 0 and below 1")

RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": _at_least(0),
    "steps": _at_least(1),
    "model.attention_dropout": _BELOW_ONE,
    "model.hidden_dropout": _BELOW_ONE,
    "model.recompute_num_layers": _at_least(1),
    "parallel.tensor_model_parallel_size": _at_least(1),
    "parallel.pipeline_model_parallel_size": _at_least(1),
    "parallel.virtual_pipeline_model_parallel_size": _at_least(1),
    "parallel.context_parallel_size": _at_least(1),
    "parallel.expert_model_parallel_size": _at_least(1),
    "parallel.expert_tensor_parallel_size": _at_least(1),
    "parallel.timeout_minutes": _ABOVE_ZERO,
    "optimizer.lr": _ABOVE_ZERO,
    "optimizer.min_lr": _at_least(0),
    "optimizer.lr_warmup_steps": _at_least(0),
    "optimizer.lr_decay_steps": _at_least(1),
    "optimizer.weight_decay": _at_least(0),
    "optimizer.adam_beta1": _BELOW_ONE,
    "optimizer.adam_beta2": _BELOW_ONE,
    "optimizer.adam_eps": _ABOVE_ZERO,
    "optimizer.clip_grad": _at_least(0),
    "optimizer.max_non_finite": _at_least(1),
    "data.max_prompt_length": _at_least(1),
    "rollout.prompts_per_step": _at_least(1),
    "rollout.group_size": _at_least(2),
    "rollout.max_response_length": _at_least(1),
    "rollout.temperature": _at_least(0),
    "rollout.top_p": _POSITIVE_SHARE,
    "rollout.top_k": _at_least(0),
    "rollout.max_running_samples": _at_least(1),
    "rollout.max_turns": _at_least(1),
    "rollout.max_staleness": _at_least(0),
    "rollout.max_refills": _at_least(0),
    "vllm.servers": _at_least(1),
    "vllm.tensor_parallel_size": _at_least(1),
    "vllm.start_timeout_s": _ABOVE_ZERO,
    "vllm.request_timeout_s": _ABOVE_ZERO,
    "vllm.stall_timeout_s": _ABOVE_ZERO,
    "vllm.max_retries": _at_least(0),
    "vllm.max_restarts": _at_least(0),
    "vllm.max_running_requests": _at_least(1),
    "vllm.bucket_bytes": _at_least(2**20),
    "reward.workers": _at_least(1),
    "reward.timeout_s": _ABOVE_ZERO,
    "reward.memory_gb": (lambda value: 0.1 <= value < math.inf, "at least 0.1, or null for any"),
    "reward.length_full_until": _at_least(0),
    "reward.length_floor": _PROBABILITY,
    "reward.overlong_buffer": _at_least(1),
    "reward.overlong_penalty": _at_least(0),
    "correction.cap": _at_least(1),
    "correction.warn_kl": (lambda value: 0 < value < math.inf, "above 0, or null for never"),
    "correction.stop_kl": (lambda value: 0 < value < math.inf, "above 0, or null for never"),
    "algorithm.clip_low": (lambda value: 0 < value < 1, "above 0 and below 1"),
    "algorithm.clip_high": _ABOVE_ZERO,
    "algorithm.dual_clip": (lambda value: 1 < value < math.inf, "above 1, or null for off"),
    "algorithm.updates_per_step": _at_least(1),
    "algorithm.micro_batch_size": _at_least(1),
    "resrl.rank": _at_least(1),
    "resrl.max_positive_tokens": _at_least(4),
    "resrl.window_tokens": _at_least(1),
    "resrl.floor": _PROBABILITY,
    "resrl.positive_weight": _at_least(0),
    "resrl.diagnose_every": _at_least(0),
    "resrl.interference_tokens": _at_least(1),
    "checkpoint.save_every": _at_least(0),
    "checkpoint.keep_last": _at_least(1),
    "checkpoint.keep_every": _at_least(0),
    "checkpoint.preemption_exit_code": _between(0, 255),
    "evaluation.every": _at_least(0),
    "evaluation.samples_per_prompt": _at_least(1),
    "evaluation.temperature": _at_least(0),
    "evaluation.top_p": _POSITIVE_SHARE,
    "evaluation.max_prompts": _at_least(1),
    "logging.sample_responses": _at_least(0),
}
"""Dotted setting -> test of its value, and the right values in words. Unset ones are skipped."""


def check_ranges(facts: Facts) -> Iterator[Problem]:
    """Every number lies in its range; not-a-number and infinity lie in none."""
    for setting, (holds, words) in RANGES.items():
        value: Any = facts.recipe
        for part in setting.split("."):
            value = getattr(value, part)
        if isinstance(value, int) and abs(value) >= 2**63:
            yield Problem(setting, value, "it does not fit in 64 bits", "use a number below 2^63")
        elif value is not None and not holds(value):
            yield Problem(setting, value, "out of range", f"it must be {words}")
