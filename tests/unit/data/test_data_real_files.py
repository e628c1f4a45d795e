"""Real datasets whose layout is covered can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from questions import load_prompts

GSM8K = {"prompt_key": "question", "answer_pattern": "#### (.+)"}
PROBLEM = {"prompt_key": "problem"}
TARGET = {"answer_key": "reward_model.ground_truth.target"}


@pytest.mark.parametrize(
    ("name", "keys", "rows", "first", "source"),
    [
        ("gsm8k_train", GSM8K, 30, "72", "gsm8k_train"),
        ("gsm8k_test", GSM8K, 40, "18", "gsm8k_test"),
        ("math_train", TARGET, 40, "0", "TianHongZXY/MATH"),  # 4 of 44 have no answer
        ("dapo_math_17k", {}, 40, "34", "DAPO-17k"),
        ("math500", PROBLEM, 40, r"\left( 3, \frac{\pi}{2} \right)", "math500"),
        ("aime24", PROBLEM, 10, "204", "aime24"),
        ("aime25", TARGET, 30, "70", "TianHongZXY/AIME2025"),
        ("amc23", PROBLEM, 40, "27.0", "amc23"),
        ("countdown_test", {}, 24, {"numbers": [47, 76, 55, 60], "target": 24}, "countdown"),
        (
            "countdown_train_4096",
            {"answer_key": "reward_model.ground_truth.target"},
            24,
            98,
            "countdown",
        ),
        (
            "humaneval_plus_mini",
            {"answer_key": "entry_point"},
            5,
            "has_close_elements",
            "humaneval_plus_mini",
        ),
    ],
)
def test_read_records_reads_whole_public_datasets(
    reference: Path, name: str, keys: dict[str, str], rows: int, first: Any, source: str
) -> None:
    records = load_prompts(reference / "questions" / f"{name}.parquet", **keys)
    assert len(records) == rows
    assert records[0].ground_truth == first
    assert {record.data_source for record in records} == {source}
    assert all(record.messages[-1]["role"] == "user" for record in records)
