"""Which tests say that they fail where a setting of a recipe is ignored."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from reference_cases import CASES

from megatron_resrl.config.recipe_schema import schema_of
from megatron_resrl.config.schema import RunSettings
from megatron_resrl.config.stages import STAGES

OF_RUNS = set(schema_of(RunSettings).settings)
"""Those that every stage has."""
TESTS = Path(__file__).resolve().parent
STEP = "tests/distributed/training/test_reference_step.py"
"""Marks its cases with the settings that they change."""


def every_setting() -> list[str]:
    """Those of reinforcement learning by their names, those that another stage has alone as
    `sft:batch.sequence_packing`."""
    names = []
    for command, kind in STAGES.items():
        own = [
            name for name in schema_of(kind).settings if command == "train" or name not in OF_RUNS
        ]
        names += own if command == "train" else [f"{command}:{name}" for name in own]
    return names


def class_of(setting: str) -> type:
    """The dataclass whose field a setting is.

    Raises:
        ValueError: There is no such setting.
    """
    if setting not in every_setting():
        raise ValueError(f"there is no setting {setting!r}")
    command, _, name = setting.rpartition(":")
    schema = schema_of(STAGES[command or "train"])
    section, _, _ = name.rpartition(".")
    return schema.sections[section] if section else schema.recipe


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
