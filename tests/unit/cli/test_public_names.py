"""The names that `megatron_resrl` itself offers, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import megatron_resrl

SOURCE = Path(megatron_resrl.__file__)
NAMES = [name for name in megatron_resrl.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_public_name_is_what_its_module_defines(name: str) -> None:
    value = getattr(megatron_resrl, name)
    home = sys.modules[value.__module__]
    assert getattr(home, name) is value
    assert home.__name__.startswith("megatron_resrl.")
    assert value.__doc__


def test_public_names_for_type_checkers_are_the_same() -> None:
    (block,) = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    typed = {
        alias.asname: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert typed == {
        name: f"megatron_resrl.{home}" for name, home in megatron_resrl._HOME_OF_NAME.items()
    }


def test_package_import_loads_no_heavy_library() -> None:
    heavy = ("torch", "megatron", "transformers", "pyarrow", "jsonargparse", "numpy")
    program = f"import sys, megatron_resrl; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout.strip() == "[]"


def test_package_refuses_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = megatron_resrl.trian
    assert set(megatron_resrl.__all__) <= set(dir(megatron_resrl))
