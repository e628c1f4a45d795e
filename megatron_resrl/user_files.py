"""Objects that a recipe names as `path.py:name`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def split_name(name: str) -> tuple[Path, str] | None:
    """The file, as an absolute path, and the attribute of `path.py:name`; None: not of that form.

    Whether the file exists is not looked at.
    """
    file, _, attribute = name.rpartition(":")
    if not file.endswith(".py") or not attribute:
        return None
    return Path(file).expanduser().resolve(), attribute


def run_file(file: Path, kind: str) -> ModuleType:
    """Runs a file of the user's as a module.

    Args:
        file: Python source. It can import files beside it.
        kind: What is looked for there; part of the module's name.
    """
    # Registered under a name of its own: dataclasses and pickle look their module up there.
    module_name = f"megatron_resrl_{kind}_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None  # A path that ends in .py has a loader.
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    folder = str(file.parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module
