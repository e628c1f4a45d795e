"""Which tests say that they fail where a setting of a recipe is ignored."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from reference_cases import CASES

TESTS = Path(__file__).resolve().parent
STEP = "tests/distributed/training/test_reference_step.py"
"""Marks its cases with the settings that they change."""


def claims() -> dict[str, set[str]]:
    """Setting -> files, from the root of the checkout, with tests that are marked with it."""
    found = defaultdict(set)
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.setting":
                names = [each for each in node.args if isinstance(each, ast.Constant)]
                for name in names:
                    found[name.value].add(str(path.relative_to(TESTS.parent)))
    for case in CASES.values():
        for name in case.changes if case.shows else ():
            found[name].add(STEP)
    return dict(found)
