"""Names of tests: `test_<unit>_<claim>`, at most 60 characters."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]


def names() -> Iterator[tuple[str, str]]:
    """File and name of every test function."""
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield str(file.relative_to(TESTS)), node.name


def test_names_of_tests_are_short_and_begin_with_the_unit() -> None:
    found = list(names())
    assert len(found) > 900
    assert not [each for each in found if len(each[1]) > 60]
    assert not [each for each in found if each[1].startswith(("test_a_", "test_an_", "test_the_"))]


def test_names_of_tests_occur_once_in_a_file() -> None:
    found = list(names())
    assert len(set(found)) == len(found)
