"""docs/algorithms.md has the tables of the code, and the command prints the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from megatron_resrl.algorithms import algorithm_names, get_algorithm_class
from megatron_resrl.algorithms.algorithm import KL_SETTING
from megatron_resrl.cli import main
from megatron_resrl.cli.algorithms import listing
from megatron_resrl.config.recipe_schema import schema_of
from megatron_resrl.config.schema import Recipe
from megatron_resrl.token_weighting.registry import WEIGHTINGS

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "algorithms.md"


def test_algorithms_page_has_the_tables_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    from algorithms_table import tables, with_tables

    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page, "run python tools/algorithms_table.py"
    assert all(table in page for table in tables().values())


def test_algorithms_listing_is_complete() -> None:
    found = listing()
    assert tuple(found["algorithms"]) == algorithm_names()
    assert found["weightings"].keys() == WEIGHTINGS.keys()
    known = schema_of(Recipe).settings
    for name, entry in found["algorithms"].items():
        assert entry["summary"], name
        assert entry["source"], name
        assert all(option["meaning"] for option in entry["options"].values()), name
        assert entry["published_with"].keys() <= known.keys()
        fields = {
            field.name for field in dataclasses.fields(get_algorithm_class(name)) if field.init
        }
        own = fields - set(get_algorithm_class(name).settings) - set(KL_SETTING)
        assert entry["options"].keys() | (found["options"].keys() & own) == own


def test_algorithms_command_prints_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["algorithms"]) == 0
    text = capsys.readouterr().out
    assert "  rloo: A = r - mean of the other rewards of the group (arXiv 2402.14740)" in text
    assert "      ratio_cap = 20.0: The largest ratio" in text
    assert max(map(len, text.splitlines())) <= 100
    assert main(["algorithms", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(listing()))


def test_algorithms_command_names_an_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["algorithms", "--jsn"]) == 2
    assert "unknown option '--jsn'; did you mean --json?" in capsys.readouterr().err
    assert main(["algorithms", "recipe.yaml"]) == 2
    assert "unknown option 'recipe.yaml'" in capsys.readouterr().err
