"""Ranks share the tokenization of conversations and get what one rank alone would read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import conversation, write_chat_model
from transformers import AutoTokenizer

from megatron_resrl.config.schema_sft import SftDataConfig
from megatron_resrl.data.fine_tuning import Example, digest, put_together, read_part
from megatron_resrl.errors import InputError

BAD_ROLE = {"messages": [{"role": "narrator", "content": "3"}]}
NO_ASSISTANT = {"messages": [{"role": "user", "content": "3"}]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(write_chat_model(tmp_path_factory.mktemp("model")))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(
    files: list[str], tokenizer: Any, ranks: int, max_length: int = 48
) -> dict[str, list[Example]]:
    """As so many ranks read it."""
    parts = [
        read_part("data.train_files", files, SftDataConfig(), tokenizer, 64, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    return put_together(parts, max_length)


def refusal(files: list[str], tokenizer: Any, ranks: int, max_length: int = 48) -> str:
    with pytest.raises(InputError) as raised:
        read(files, tokenizer, ranks, max_length)
    return str(raised.value)


def test_read_part_of_ranks_together_is_what_one_reads(tmp_path, tokenizer):
    rows = [conversation(number, 1 + number % 3) for number in range(9)]
    files = [write(tmp_path / "a.jsonl", rows[:7]), write(tmp_path / "b.jsonl", rows[7:])]
    alone = read(files, tokenizer, 1)
    assert list(map(len, alone.values())) == [7, 2]
    for ranks in (2, 3, 5):
        shared = read(files, tokenizer, ranks)
        assert list(shared) == list(alone)
        for name, examples in alone.items():
            assert digest(shared[name]) == digest(examples)
            assert [each.record for each in shared[name]] == [each.record for each in examples]


def test_read_part_tokenizes_only_the_rows_of_its_rank(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", [conversation(number) for number in range(5)])
    settings = ("data.train_files", [file], SftDataConfig(), tokenizer, 64)
    parts = [read_part(*settings, rank=rank, ranks=2) for rank in range(2)]
    found = [[each.record.index for each in part.examples] for (part,) in parts]
    assert found == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_put_together_names_the_first_row_of_all_ranks(tmp_path, tokenizer, ranks):
    good = [conversation(number) for number in range(3)]
    first = write(tmp_path / "a.jsonl", [*good, NO_ASSISTANT, BAD_ROLE, BAD_ROLE])
    second = write(tmp_path / "b.jsonl", [BAD_ROLE, *good])
    said = refusal([first, second], tokenizer, ranks)
    assert "a.jsonl, line 4" in said
    assert "no message is the assistant's" in said
    assert "b.jsonl" in refusal([second, first], tokenizer, ranks)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_put_together_names_a_line_that_cannot_be_read(tmp_path, tokenizer, ranks):
    file = tmp_path / "a.jsonl"
    write(file, [conversation(number) for number in range(4)])
    file.write_text(file.read_text() + "{broken\n" + json.dumps(BAD_ROLE) + "\n")
    said = refusal([str(file)], tokenizer, ranks)
    assert "line 5" in said
    assert said == refusal([str(file)], tokenizer, 1)


def test_put_together_refuses_files_of_long_conversations_alone(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", [conversation(number) for number in range(4)])
    alone = refusal([file], tokenizer, 1, max_length=2)
    assert "no conversation is left" in alone
    assert refusal([file], tokenizer, 3, max_length=2) == alone
