"""Files of graded responses."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_resrl.evaluation.responses import read_responses, write_responses


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_responses_keep_the_score_by_each_function(tmp_path: Path, ending: str) -> None:
    responses = [{"response": "7", "score": 1.0, "functions": {"math": 1.0, "format": 0.0}}]
    responses.append({"response": "8", "score": 0.0})
    record = {"step": 1, "row": 0, "question": "3 4", "ground_truth": "7", "responses": responses}
    path = tmp_path / f"set.{ending}"
    write_responses(path, [record])
    assert read_responses(path) == [record]
