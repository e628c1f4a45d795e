"""Samples written down: a few of each step to read, and a whole batch when a step went wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_resrl.rollout.collect import Sample


def readable(sample: Sample) -> dict[str, Any]:
    """What a person wants to see of a sample."""
    record = {
        "prompt": sample.prompt.record.messages[-1]["content"],
        "response": sample.text,
        "ground_truth": str(sample.prompt.record.ground_truth),
        "score": sample.score,
        "reward": sample.reward,
        "tokens": sample.response.drawn,
        "finish_reason": sample.response.finish_reason,
    }
    return record if sample.transcript is None else record | {"transcript": sample.transcript}


def dump_path(directory: Path, step: int) -> Path:
    """Where `dump_batch` writes."""
    return directory / "not_finite" / f"step_{step:06d}.jsonl"


def dump_batch(directory: Path, step: int, samples: Sequence[Sample]) -> Path:
    """Writes every sample of a step, token ids included, so that it can be looked into.

    Returns:
        The file.
    """
    path = dump_path(directory, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for sample in samples:
            record = readable(sample) | {
                "group": sample.group,
                "prompt_ids": list(sample.prompt.token_ids),
                "response_ids": list(sample.response.token_ids),
                "log_probs": list(sample.response.log_probs),
            }
            if sample.response.response_mask is not None:
                record["response_mask"] = list(sample.response.response_mask)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path
