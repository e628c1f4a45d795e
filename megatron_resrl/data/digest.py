"""A fingerprint of the questions: the same on every rank and machine, another if one differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from megatron_resrl.data.prompts import Prompt


def digest(prompts: Iterable[Prompt]) -> str:
    """SHA-256 over token ids, ground truth, data source and the other columns, in order.

    Where the files lie, and in how many pieces, does not count.

    Returns:
        64 hexadecimal digits.
    """
    total = hashlib.sha256()
    for prompt in prompts:
        record = prompt.record
        content = [prompt.token_ids, record.ground_truth, record.data_source, record.extra]
        # One line per prompt: JSON escapes line ends, so that no two lists share their lines.
        total.update(json.dumps(content, sort_keys=True, default=_plain).encode() + b"\n")
    return total.hexdigest()


def _plain(value: Any) -> str:
    """Values of parquet columns that JSON has no type for: dates, decimals, bytes."""
    return f"{type(value).__name__} {value!r}"
