"""The whole command: rows in, question file and card out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from questions import load_prompts

from megatron_resrl.errors import InputError
from megatron_resrl.evaluation.responses import write_responses
from megatron_resrl.preparation.prepare import prepare_data

TOOL = Path(__file__).resolve().parents[3] / "tools/prepare_data.py"
SUMS = [(f"What is the sum of {n} and {n + 1}?", str(2 * n + 1)) for n in range(60)]


@pytest.fixture
def source(tmp_path: Path) -> str:
    """60 questions, one copy and one without an answer."""
    rows = [{"question": text, "answer": f"Add.\n#### {answer}"} for text, answer in SUMS]
    rows += [{"question": SUMS[3][0].upper(), "answer": "#### 7"}, {"question": "?", "answer": ""}]
    return write(tmp_path / "source.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def card(folder: Path, name: str = "gsm8k_train") -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def test_prepare_data_writes_what_training_reads(source: str, tmp_path: Path) -> None:
    said = prepare_data("gsm8k_train", str(tmp_path / "out"), source=[source])
    assert "62 rows, 1 without an answer" in said
    records = load_prompts(tmp_path / "out/gsm8k_train.parquet")
    assert [(each.messages[0]["content"], each.ground_truth) for each in records] == SUMS
    assert {each.data_source for each in records} == {"gsm8k_train"}
    found = card(tmp_path / "out")
    assert (found["rows_read"], found["without_answer"], found["rows_written"]) == (62, 1, 60)
    assert found["duplicates"]["normalised"] == {"found": 1, "removed": 1}
    assert found["found"] == [
        {"row": 60, "kind": "normalised", "of": "row 3", "similarity": 1.0, "removed": True}
    ]
    assert found["licence"] == "MIT"
    (file,) = found["sources"]
    assert (file["from"], file["as_published"], len(file["sha256"])) == (source, False, 64)


def test_prepare_data_keeps_all_of_an_evaluation(source: str, tmp_path: Path) -> None:
    prepare_data("gsm8k", str(tmp_path / "out"), source=[source])
    assert card(tmp_path / "out", "gsm8k")["rows_written"] == 61


def test_prepare_data_removes_questions_of_evaluations(source: str, tmp_path: Path) -> None:
    raw = write(tmp_path / "raw.jsonl", [{"problem": SUMS[5][0].lower(), "answer": "x"}])
    chats = [{"prompt": [{"role": "user", "content": SUMS[7][0]}]}]
    chat = write(tmp_path / "chat.jsonl", chats)
    prepare_data("gsm8k_train", str(tmp_path), source=[source], against=[raw, chat], near=1.0)
    left = [each.messages[0]["content"] for each in load_prompts(tmp_path / "gsm8k_train.parquet")]
    assert left == [text for n, (text, _) in enumerate(SUMS) if n not in (5, 7)]
    found = [each for each in card(tmp_path)["found"] if each["row"] < 60]
    assert [(each["row"], each["of"]) for each in found] == [
        (5, f"{raw}, row 0"),
        (7, f"{chat}, row 0"),
    ]


def test_prepare_data_keeps_what_a_model_gets_sometimes(source: str, tmp_path: Path) -> None:
    """The file is the one that an evaluation of the prepared set keeps."""
    scores = {0: [0, 0, 0, 0], 1: [1, 1, 0, 1], 2: [1, 1, 1, 1], 3: [0, 0.5, 0, 0]}
    kept = [
        {
            "step": None,
            "row": n,
            "question": SUMS[n][0],
            "ground_truth": SUMS[n][1],
            "responses": [{"response": "r", "score": score} for score in each],
        }
        for n, each in scores.items()
    ]
    rates = write(tmp_path / "kept.jsonl", kept)
    options = {"source": [source], "pass_rates": [rates], "near": 1.0}
    prepare_data("gsm8k_train", str(tmp_path / "a"), **options)
    table = pq.read_table(tmp_path / "a/gsm8k_train.parquet")
    assert table.select(["prompt", "pass_rate"]).to_pylist() == [
        {"prompt": SUMS[1][0], "pass_rate": 0.75},
        {"prompt": SUMS[3][0], "pass_rate": 0.25},
    ]
    removed = {"too_hard": 1, "too_easy": 1, "unknown": 56}
    assert card(tmp_path / "a")["pass_rates"] == removed
    prepare_data("gsm8k_train", str(tmp_path / "b"), keep_between=[0.5, 1.0], **options)
    assert pq.read_table(tmp_path / "b/gsm8k_train.parquet")["pass_rate"].to_pylist() == [0.75, 1]


@pytest.mark.parametrize("folder", ["evaluation", "evaluation.1"])
def test_prepare_data_reads_pass_rates_in_parquet(source, tmp_path, folder) -> None:
    """With words around the questions, which the summary of the evaluation tells."""
    template = "Think. {question} End with a number."
    around = {"gsm8k_train": {"settings": {"prompt_template": template}}}
    (tmp_path / f"{folder}.json").write_text(json.dumps({"sets": around}))
    (tmp_path / folder).mkdir()
    kept = [
        {
            "row": n,
            "question": template.replace("{question}", SUMS[n][0]),
            "responses": [{"response": "r", "score": float(each < n)} for each in range(4)],
        }
        for n in range(5)
    ]
    rates = tmp_path / folder / "gsm8k_train.parquet"
    write_responses(rates, kept)
    prepare_data(
        "gsm8k_train",
        str(tmp_path / "out"),
        source=[source],
        pass_rates=[str(rates)],
        near=1.0,
    )
    table = pq.read_table(tmp_path / "out" / "gsm8k_train.parquet")
    assert table.select(["prompt", "pass_rate"]).to_pylist() == [
        {"prompt": SUMS[n][0], "pass_rate": n / 4} for n in (1, 2, 3)
    ]


def test_prepare_data_holds_a_share_out(source: str, tmp_path: Path) -> None:
    options = {"source": [source], "held_out": 0.3, "near": 1.0}
    prepare_data("gsm8k_train", str(tmp_path), **options)
    parts = [
        [each.messages[0]["content"] for each in load_prompts(tmp_path / f"{name}.parquet")]
        for name in ("gsm8k_train", "gsm8k_train_held_out")
    ]
    assert sorted(parts[0] + parts[1]) == sorted(text for text, _ in SUMS)
    assert card(tmp_path)["held_out"] == len(parts[1]) > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"near": 0.0}, "--near = 0.0: give a share above 0"),
        ({"held_out": 1.0}, "--held_out = 1.0: give a share"),
        ({"keep_between": [0.1, 0.9]}, "--keep_between needs --pass_rates"),
        ({"keep_between": [0.9, 0.1], "pass_rates": ["x"]}, "two shares, the smaller first"),
        ({"pass_rates": ["none.jsonl"]}, "there is no file none.jsonl"),
        ({"against": ["none.jsonl"]}, "there is no file none.jsonl"),
        ({"dataset": "gsm8"}, "did you mean gsm8k"),
    ],
)
def test_prepare_data_refuses_before_it_reads(source, tmp_path, options, said) -> None:
    given = {"dataset": "gsm8k", "output": str(tmp_path / "out"), "source": ["absent"]} | options
    with pytest.raises(InputError, match=said):
        prepare_data(**given)
    assert not (tmp_path / "out").exists()


def test_prepare_data_names_what_a_wrong_file_holds(source: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"source.jsonl, line 1: .* responses"):
        prepare_data("gsm8k", str(tmp_path), source=[source], pass_rates=[source])
    unscored = [{"question": "q", "responses": ["a text"]}]
    kept = write(tmp_path / "kept.jsonl", unscored)
    with pytest.raises(InputError, match="its responses have no scores"):
        prepare_data("gsm8k", str(tmp_path), source=[source], pass_rates=[kept])


def test_prepare_data_overwrites_nothing(source: str, tmp_path: Path) -> None:
    prepare_data("gsm8k", str(tmp_path), source=[source])
    with pytest.raises(InputError, match="parquet is there already; remove it"):
        prepare_data("gsm8k", str(tmp_path), source=[source])


def test_prepare_data_tool_takes_the_set_as_first_word(source: str, tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "gsm8k", "--source", source, "--output", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "61 questions -> " in ran.stdout
    again = subprocess.run(command, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (2, "")
    assert "is there already" in again.stderr
