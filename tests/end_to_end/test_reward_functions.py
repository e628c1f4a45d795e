"""Several reward functions in a whole run: whose rows, which weights, and what the metrics say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults import run_task
from tiny_task import read_metrics, write_task

WEIGHTS = {"even": 1.5, "length": -0.25}
SHORT = 4


def _parts(sample: dict[str, Any]) -> dict[str, float]:
    """The score of a sample by each function that judges its row."""
    words = sample["response"].split()
    even = float(bool(words) and words[0].isdigit() and int(words[0]) % 2 == 0)
    length = max(0.0, 1.0 - max(0, sample["tokens"] - SHORT) / 4)
    left = int(sample["ground_truth"]) < 11
    return {"even": even, "length": length} if left else {"length": length}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.slow
@pytest.mark.setting("reward.functions")
def test_functions_make_the_reward_of_their_rows_in_a_run(tmp_path: Path) -> None:
    for source, first in (("left", 3), ("right", 11)):
        rows = [{"prompt": f"{n} {n + 1}", "answer": str(n)} for n in range(first, first + 8)]
        rows = [{**row, "data_source": source} for row in rows]
        (tmp_path / f"{source}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    length = {"longest": SHORT, "tolerance": 4}
    recipe = write_task(
        tmp_path,
        steps=2,
        data__train_files=[str(tmp_path / "left.jsonl"), str(tmp_path / "right.jsonl")],
        evaluation__files=[str(tmp_path / "left.jsonl"), str(tmp_path / "right.jsonl")],
        logging__sample_responses=24,
        reward={
            "workers": 1,
            "functions": [
                {
                    "name": f"{tmp_path / 'reward.py'}:even",
                    "weight": WEIGHTS["even"],
                    "data_sources": ["le*"],
                },
                {"name": "length", "weight": WEIGHTS["length"], "options": length},
            ],
        },
    )
    done = run_task(recipe, None, ranks=1)
    assert done.code == 0, done.text
    samples = _lines(tmp_path / "run" / "samples.jsonl")
    _, *metrics = read_metrics(tmp_path / "run")
    assert [line["step"] for line in metrics] == [1, 2]
    for line in metrics:
        own = [sample for sample in samples if sample["step"] == line["step"]]
        assert len(own) == 24
        parts = [_parts(sample) for sample in own]
        totals = [sum(WEIGHTS[name] * part[name] for name in part) for part in parts]
        assert [sample["functions"] for sample in own] == parts
        assert [sample["reward"] for sample in own] == pytest.approx(totals)
        # Without `even` for a row, `length` is the first that judges it.
        assert [sample["score"] for sample in own] == [next(iter(part.values())) for part in parts]
        even = [part["even"] for part in parts if "even" in part]
        assert 0 < len(even) < 24, "the step has rows of both kinds"
        assert line["reward/even/mean"] == pytest.approx(sum(even) / len(even))
        assert line["reward/length/mean"] == pytest.approx(sum(p["length"] for p in parts) / 24)
        assert line["reward/mean"] == pytest.approx(sum(totals) / 24)
