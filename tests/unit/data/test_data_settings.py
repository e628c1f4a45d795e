"""Settings of data, from a recipe to the tokens that a run trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from unit.data.test_data_tokenize import build_tokenizer
from unit.data.test_templates import CHATML, TOOL, WITH_TOOLS

from megatron_resrl.config.schema import DataConfig
from megatron_resrl.data.prompts import read_prompts

ASKED = {"role": "user", "content": "1+1?"}


def texts(template: str, data: DataConfig, *rows: dict[str, Any], limit: int | None = None) -> Any:
    (path,) = data.train_files
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = build_tokenizer(template)
    prompts, _ = read_prompts(data.train_files, data, tokenizer, limit)
    return ["".join(tokenizer.convert_ids_to_tokens(each.token_ids)) for each in prompts]


@pytest.mark.setting("data.continue_final_message")
def test_data_continue_final_message_continues_a_prefill(tmp_path: Path) -> None:
    data = DataConfig((str(tmp_path / "a.jsonl"),), continue_final_message=True)
    row = {"prompt": [ASKED, {"role": "assistant", "content": "it is"}], "answer": "2"}
    assert texts(CHATML, data, row) == ["<start>user\n1+1?<end><start>assistant\nit is"]


@pytest.mark.setting("data.tools_key")
def test_tools_key_names_the_column_of_tools(tmp_path: Path) -> None:
    data = DataConfig((str(tmp_path / "a.jsonl"),), tools_key="functions")
    row = {"prompt": [ASKED], "functions": [TOOL], "tools": "abacus", "answer": "2"}
    assert texts(WITH_TOOLS, data, row) == ["plus <start>1+1?<end>"]


@pytest.mark.setting("data.apply_chat_template")
def test_apply_chat_template_off_takes_texts_as_they_are(tmp_path: Path) -> None:
    data = DataConfig((str(tmp_path / "a.jsonl"),), apply_chat_template=False)
    rows = [{"prompt": text, "answer": "2"} for text in ("1+1?", "<bos>1+1?")]
    assert texts(CHATML, data, *rows) == ["<bos>1+1?"] * 2


def test_data_max_prompts_reads_only_the_first_rows(tmp_path: Path) -> None:
    data = DataConfig((str(tmp_path / "a.jsonl"),))
    rows = [{"prompt": text, "answer": "2"} for text in ("1", "2")]
    assert len(texts(CHATML, data, *rows, {"prompt": 3}, limit=2)) == 2


def test_file_entries_are_read_with_their_own_keys(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "2+2?", "final": "so #4", "answer": "5"}\n')
    own = {"path": str(tmp_path / "b.jsonl"), "prompt_key": "text", "answer_key": "final"}
    own |= {"answer_pattern": "#(.+)", "system_prompt": "be brief", "data_source": "own"}
    (tmp_path / "a.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n')
    files = (str(tmp_path / "a.jsonl"), own)
    prompts, dropped = read_prompts(files, DataConfig(), build_tokenizer(CHATML))
    first, second = [prompt.record for prompt in prompts]
    assert (first.messages, first.ground_truth, first.data_source) == ([ASKED], "2", "a")
    assert [message["content"] for message in second.messages] == ["be brief", "2+2?"]
    assert (second.ground_truth, second.data_source) == ("4", "own")
    assert dropped == [0, 0]
