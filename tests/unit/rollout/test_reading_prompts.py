"""What of the settings reaches the questions that a run reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_recipe import write_model

from megatron_resrl.config.schema import DataConfig, ModelConfig
from megatron_resrl.data.prompts import read_prompts
from megatron_resrl.data.tokenizer import load_tokenizer

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}61{% if tools %} 60{% endif %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_model(tmp_path_factory.mktemp("model"))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def token_ids(model: Path, row: dict, **settings: object) -> tuple[int, ...]:
    questions = model / "questions.jsonl"
    questions.write_text(json.dumps(row | {"answer": "4"}) + "\n")
    tokenizer = load_tokenizer(ModelConfig(path=str(model)))
    prompts, _ = read_prompts([str(questions)], DataConfig(**settings), tokenizer)
    return tuple(prompts[0].token_ids)


TOOL = {"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}


@pytest.mark.setting("data.tools_key")
def test_tools_stand_in_the_column_that_is_named(model: Path) -> None:
    row = {"prompt": "3 4", "functions": [TOOL]}
    assert token_ids(model, row, tools_key="functions") == (3, 4, 61, 60)
    assert token_ids(model, row) == (3, 4, 61)


@pytest.mark.setting("data.apply_chat_template")
def test_reading_prompts_without_template_takes_the_text(model: Path) -> None:
    row = {"prompt": "3 4"}
    assert token_ids(model, row) == (3, 4, 61)
    assert token_ids(model, row, apply_chat_template=False)[-1] == 4
