"""Samples as records: a few of each step to read, and a whole batch when a step went wrong."""

from __future__ import annotations

from typing import Any

from megatron_resrl.rollout.collect import Sample


def readable(sample: Sample) -> dict[str, Any]:
    """What a person wants to see of a sample."""
    record = {
        "prompt": sample.question,
        "response": sample.text,
        "ground_truth": str(sample.prompt.record.ground_truth),
        "score": sample.score,
        "reward": sample.reward,
        "tokens": sample.response.num_generated_tokens,
        "finish_reason": sample.response.finish_reason,
    }
    if sample.parts:
        record["functions"] = dict(sample.parts)
    return record if sample.transcript is None else record | {"transcript": sample.transcript}


def complete(sample: Sample) -> dict[str, Any]:
    """All of a sample, token ids included, so that a step that went wrong can be looked into."""
    record = readable(sample) | {
        "group": sample.group,
        "prompt_ids": list(sample.prompt_ids),
        "response_ids": list(sample.response.token_ids),
        "log_probs": list(sample.response.log_probs),
    }
    if sample.response.response_mask is not None:
        record["response_mask"] = list(sample.response.response_mask)
    return record
