"""Reading questions: layouts that work, and what is said about the others."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from questions import load_prompts

from megatron_resrl.data.prompts import PromptRecord
from megatron_resrl.errors import InputError

USER = {"role": "user", "content": "1+1?"}
SYSTEM = {"role": "system", "content": "be brief"}

Write = Callable[[list[dict[str, Any]]], Path]


@pytest.fixture(params=["jsonl", "parquet"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    """Writes rows to a file of either kind."""

    def write(rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / f"sums.{request.param}"
        if request.param == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path

    return write


def test_read_records_makes_a_text_a_user_message(write: Write) -> None:
    path = write([{"prompt": "1+1?", "answer": "2"}, {"prompt": "2+2?", "answer": "4"}])
    first, second = load_prompts(path)
    assert first == PromptRecord(0, [USER], "2", "sums", {"answer": "2"})
    assert (second.index, second.messages[0]["content"]) == (1, "2+2?")


def test_read_records_reads_the_layout_of_rlvr_trainers(write: Write) -> None:
    row = {
        "data_source": "arithmetic",
        "prompt": [SYSTEM, USER],
        "ability": "math",
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"index": 5},
    }
    (record,) = load_prompts(write([row]))
    assert record.messages == [SYSTEM, USER]
    assert record.ground_truth == "2"
    assert record.data_source == "arithmetic"
    assert record.extra == {k: row[k] for k in ("ability", "reward_model", "extra_info")}


def test_read_records_reads_nested_columns_from_json_text(write: Write) -> None:
    row = {
        "prompt": json.dumps([USER]),
        "reward_model": json.dumps({"ground_truth": json.dumps({"target": [2]})}),
    }
    (record,) = load_prompts(write([row]), answer_key="reward_model.ground_truth.target")
    assert record.messages == [USER]
    assert record.ground_truth == [2]


def test_keys_reach_into_nested_columns(write: Write) -> None:
    path = write([{"question": {"text": "1+1?"}, "solution": {"final": {"value": 2}}}])
    (record,) = load_prompts(path, prompt_key="question.text", answer_key="solution.final.value")
    assert (record.messages, record.ground_truth) == ([USER], 2)


def test_keys_allow_column_names_with_dots(write: Write) -> None:
    (record,) = load_prompts(write([{"prompt": "1+1?", "a.b": 2}]), answer_key="a.b")
    assert record.ground_truth == 2


@pytest.mark.parametrize(
    ("columns", "answer"),
    [
        ({"reward_model": {"ground_truth": 1}, "answer": 2, "ground_truth": 3}, 1),
        ({"answer": 2, "ground_truth": 3}, 2),
        ({"reward_model": {"style": "rule"}, "ground_truth": 3}, 3),
        ({"reward_model": {"ground_truth": None}, "answer": "2"}, "2"),
        ({"answer": 0}, 0),
        ({"answer": False}, False),
    ],
)
def test_answer_key_finds_the_usual_columns_in_order(
    write: Write, columns: dict[str, Any], answer: Any
) -> None:
    (record,) = load_prompts(write([{"prompt": "1+1?", **columns}]))
    assert record.ground_truth == answer


def test_answer_pattern_cuts_the_answer_out_of_its_column(write: Write) -> None:
    path = write([{"prompt": "1+1?", "answer": "1 and 1 is 2\n#### 2 "}])
    (record,) = load_prompts(path, answer_pattern="#### (.+)")
    assert record.ground_truth == "2"
    assert record.extra["answer"] == "1 and 1 is 2\n#### 2 "


def test_read_records_adds_a_system_prompt_where_none_is(write: Write) -> None:
    other = {"role": "system", "content": "be kind"}
    path = write([{"prompt": [USER], "answer": 2}, {"prompt": [other, USER], "answer": 2}])
    first, second = load_prompts(path, system_prompt="be brief")
    assert first.messages == [SYSTEM, USER]
    assert second.messages == [other, USER]


def test_read_records_drops_fields_of_other_messages(write: Write) -> None:
    named = {**USER, "name": "ann"}
    first, second = load_prompts(
        write([{"prompt": [named], "answer": 2}, {"prompt": [USER], "answer": 2}])
    )
    assert (first.messages, second.messages) == ([named], [USER])


def test_read_records_keeps_text_that_looks_like_json(write: Write) -> None:
    texts = ["[1, 2", '{"a": 1}', "[[1, 2], [3, 4]] is a matrix", '["role"]', "[]"]
    records = load_prompts(write([{"prompt": text, "answer": 1} for text in texts]))
    assert [record.messages[0]["content"] for record in records] == texts


def test_data_source_can_be_given(write: Write) -> None:
    path = write([{"prompt": "1+1?", "answer": 2, "data_source": "own"}])
    assert load_prompts(path)[0].data_source == "own"
    assert load_prompts(path, data_source="given")[0].data_source == "given"


def test_read_records_drops_and_reports_empty_answers(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    answers = ["1", "", None, "  ", "5"]
    path = write([{"prompt": "?", "answer": answer} for answer in answers])
    with caplog.at_level(logging.WARNING):
        records = load_prompts(path)
    assert [(record.index, record.ground_truth) for record in records] == [(0, "1"), (4, "5")]
    (report,) = caplog.messages
    place = "line 2" if path.suffix == ".jsonl" else "row 1"
    assert report == (
        f"3 questions have an empty answer and are dropped, the first: {path}, {place}, answer"
    )


@pytest.mark.parametrize("answer", [float("nan"), [], [""], ["", None]])
def test_read_records_takes_holes_for_empty_answers(write: Write, answer: Any) -> None:
    filled = 5.0 if isinstance(answer, float) else ["5"]
    path = write([{"prompt": "?", "answer": filled}, {"prompt": "?", "answer": answer}])
    (record,) = load_prompts(path)
    assert record.ground_truth == filled


def test_read_records_takes_a_hole_of_pandas_for_empty(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["3", "4"], "answer": pyarrow.array([float("nan"), 5.0])})
    pyarrow.parquet.write_table(table, tmp_path / "sums.parquet")
    assert [record.ground_truth for record in load_prompts(tmp_path / "sums.parquet")] == [5.0]


USER_SAYS_NOTHING = [{"role": "user", "content": " "}]


@pytest.mark.parametrize("prompt", [None, "", " \n", [], USER_SAYS_NOTHING])
def test_read_records_drops_and_reports_empty_prompts(
    write: Write, caplog: pytest.LogCaptureFixture, prompt: Any
) -> None:
    full = [USER] if isinstance(prompt, list) else "1+1?"
    rows = [{"prompt": each, "answer": "2"} for each in (full, prompt, prompt, full)]
    path = write(rows)
    with caplog.at_level(logging.WARNING):
        assert [record.index for record in load_prompts(path)] == [0, 3]
    place = "line 2" if path.suffix == ".jsonl" else "row 1"
    assert caplog.messages == [
        f"2 questions have an empty prompt and are dropped, the first: {path}, {place}, prompt"
    ]


def test_read_records_keeps_a_prompt_of_system_alone_empty(write: Write) -> None:
    path = write(
        [{"prompt": [SYSTEM, *USER_SAYS_NOTHING], "answer": 2}, {"prompt": [USER], "answer": 2}]
    )
    assert [record.index for record in load_prompts(path)] == [1]


@pytest.mark.parametrize("empty", ["prompt", "answer"])
def test_read_records_refuses_a_file_of_empty_questions(write: Write, empty: str) -> None:
    with pytest.raises(InputError, match=rf"all {empty}s are empty, from .*, {empty} on; give"):
        load_prompts(write([{"prompt": "?", "answer": "1"} | {empty: ""}] * 2))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"prompt": "a", "question": "b", "problem": "c"}, "a"),
        ({"question": "b", "problem": "c"}, "b"),
        ({"problem": "c"}, "c"),
        ({"prompt": "", "problem": "c"}, "c"),
        ({"prompt": None, "question": [USER]}, "1+1?"),
    ],
)
def test_prompt_key_finds_the_usual_columns_in_order(
    write: Write, columns: dict[str, Any], said: str
) -> None:
    (record,) = load_prompts(write([{**columns, "answer": 2}]))
    assert record.messages == [{"role": "user", "content": said}]


def test_read_records_can_stop_early(write: Write) -> None:
    path = write([{"prompt": "1+1?", "answer": 2}] * 3)
    assert len(load_prompts(path, limit=2)) == 2


BAD_ROWS = [
    (
        {"query": "?", "answer": 1},
        {},
        "no column 'prompt' or 'question' or 'problem' (data.prompt_key); it has query, answer",
    ),
    (
        {"question": "?", "answer": 1},
        {"prompt_key": "prompt"},
        "no column 'prompt' (data.prompt_key); it has question, answer",
    ),
    (
        {"prompt": {"text": "?"}, "answer": 1},
        {"prompt_key": "prompt.txt"},
        "no column 'prompt.txt' (data.prompt_key); it has prompt.text, answer",
    ),
    (
        {"prompt": "?", "reward_model": {"style": "rule"}},
        {},
        "no answer column (data.answer_key: reward_model.ground_truth or answer or ground_truth); "
        "it has prompt, reward_model.style",
    ),
    (
        {"prompt": "?", "answer": 1},
        {"answer_key": "target"},
        "no answer column (data.answer_key: target); it has prompt, answer",
    ),
    ({"prompt": 3, "answer": 1}, {}, ", prompt: it is a int, 3; give a text, or a list of"),
    ({"prompt": {"a": 1}, "answer": 1}, {}, ", prompt: it is a JSON object, {'a': 1}; give a"),
    ({"prompt": ["?"], "answer": 1}, {}, ", prompt: it is a list, ['?']; give a text, or a"),
    ({"prompt": [{"role": "user"}], "answer": 1}, {}, "each with the texts role and content"),
    ({"prompt": [{"role": "user", "content": 3}], "answer": 1}, {}, "the texts role and content"),
    (
        {"prompt": "?", "answer": "42"},
        {"answer_pattern": "#### (.+)"},
        ", answer: data.answer_pattern = '#### (.+)' finds nothing in '42'",
    ),
    (
        {"prompt": "?", "answer": "#### "},
        {"answer_pattern": "####(.*)"},
        ", answer: data.answer_pattern = '####(.*)' finds nothing in '#### '",
    ),
    ({"prompt": "a \ud835", "answer": 1}, {}, ", prompt: character 2 is half of a surrogate pair"),
    (
        {"prompt": [USER, {"role": "user", "content": "\udc00"}], "answer": 1},
        {},
        ", prompt: character 0 is half of a surrogate pair, near '\\udc00', which no tokenizer",
    ),
    ({"prompt": "?", "answer": ["x", "\ud835"]}, {}, ", answer: character 0 is half of a surro"),
    ({"prompt": "?", "answer": 1, "data_source": "\ud835"}, {}, ", data_source: character 0 is"),
    (
        {"prompt": "?", "answer": {"target": "42"}},
        {"answer_pattern": "(.+)"},
        ", answer: it is a JSON object, and data.answer_pattern needs a text; name the field in",
    ),
]


@pytest.mark.parametrize(("row", "settings", "said"), BAD_ROWS)
def test_read_records_names_the_first_unusable_row(
    write: Write, row: dict[str, Any], settings: dict[str, str], said: str
) -> None:
    if "ud8" in repr(row) or "udc" in repr(row):
        path = write([{"prompt": "?", "answer": 1}]).with_suffix(".jsonl")
        path.write_text(json.dumps(row) + "\n")
    else:
        path = write([row])
    place = "line 1" if path.suffix == ".jsonl" else "row 0"
    with pytest.raises(InputError) as caught:
        load_prompts(path, **settings)
    assert str(caught.value).startswith(f"{path}, {place}")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "1+1?", "answer": 2', "it is not JSON, Expecting ',' delimiter at column 31"),
        ("{'prompt': 1}", "it is not JSON, Expecting property name"),
        ('{"prompt": "x"}{"prompt": "y"}', "it is not JSON, Extra data at column 16, near"),
        ("[1, 2]", 'it is a list; give one object per line, e.g. {"prompt": "...", "answer"'),
        ('"text"', "it is a text; give one object per line"),
        ("null", "it is a null; give one object per line"),
    ],
)
def test_read_records_names_the_line_of_malformed_json(
    tmp_path: Path, line: str, said: str
) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text(f'{{"prompt": "?", "answer": 1}}\n\n{line}\n')
    with pytest.raises(InputError) as caught:
        load_prompts(path)
    assert str(caught.value).startswith(f"{path}, line 3: {said}")


def test_read_records_shows_text_around_malformed_json_only(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text('{"prompt": "' + "a" * 5000 + '" oops, "answer": "' + "b" * 5000 + '"}')
    with pytest.raises(InputError, match=r'near \'a{28}" oops, "answer"') as caught:
        load_prompts(path)
    assert len(str(caught.value)) < 200 + len(str(path))


def test_read_records_allows_blank_lines_bom_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    rows = ['{"prompt": "é\u2028?", "answer": 1}', "", '{"prompt": "?", "answer": 2}', "  "]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    records = load_prompts(path)
    assert [record.messages[0]["content"] for record in records] == ["é\u2028?", "?"]
    assert [record.index for record in records] == [0, 1]


def test_read_records_names_files_that_cannot_be_read(tmp_path: Path) -> None:
    def refused(name: str, content: bytes | None) -> str:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_prompts(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert "there is no file" in refused("absent.jsonl", None)
    assert "it is empty; give a file with" in refused("empty.jsonl", b"")
    assert "it is empty; give a file with" in refused("blank.jsonl", b"\n\n")
    assert "line 1: it is not UTF-8" in refused("latin.jsonl", b'{"prompt": "\xe9"}')
    assert "not a readable parquet file" in refused("empty.parquet", b"")
    assert "not a readable parquet file" in refused("text.parquet", b"prompt,answer\n")
    said = refused("table.csv", b"prompt,answer\n")
    assert "unknown kind of file '.csv'; give a file that ends in .jsonl, .json, .parquet" in said
    with pytest.raises(InputError, match="there is no file"):
        load_prompts(tmp_path)


def test_read_records_refuses_a_parquet_file_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "none.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], "string")}), path)
    with pytest.raises(InputError, match="it is empty; give a file with"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("#### .+", "it has 0 groups, not one; put parentheses around"),
        ("(a)(b)", "it has 2 groups, not one; put parentheses around"),
        ("(", "not a valid regular expression (missing )"),
    ],
)
def test_answer_pattern_that_is_unusable_is_named(tmp_path: Path, pattern: str, said: str) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text('{"prompt": "?", "answer": 1}\n')
    with pytest.raises(InputError, match=re.escape(f"answer_pattern = {pattern!r}: {said}")):
        load_prompts(path, answer_pattern=pattern)


texts = st.text(min_size=1).filter(str.strip)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_read_records_keeps_any_text_in_both_kinds_of_file(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in pairs]
    lines, table = folder / "texts.jsonl", folder / "texts.parquet"
    lines.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    for path in (lines, table):
        records = load_prompts(path)
        assert [(r.messages[0]["content"], r.ground_truth) for r in records] == pairs
