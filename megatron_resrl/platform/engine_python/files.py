"""Where Transformer Engine's Python files are, and whether its kernels are there, too."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_NAME = "transformer_engine"
_WITHOUT_LIBRARIES = "NVTE_PROJECT_BUILDING"
"""Its variable with which its package loads no library when it is imported."""
_KERNELS = "libtransformer_engine*"


def find_engine() -> ModuleSpec | None:
    """The specification of the package, whether it can be imported as it is or not."""
    return PathFinder.find_spec(_NAME)


def has_kernels(spec: ModuleSpec) -> bool:
    """Whether a library of kernels is installed where Transformer Engine looks for it."""
    package = folder_of(spec)
    libraries = Path(sysconfig.get_paths()["purelib"])
    places = (
        *(package.parent, package, package / "wheel_lib"),
        *(libraries, libraries / _NAME, libraries / _NAME / "wheel_lib"),
    )
    return any(True for place in places for _ in place.glob(_KERNELS))


def hide_engine() -> None:
    """From now on `import transformer_engine` says that there is no such module."""
    sys.modules[_NAME] = None  # type: ignore[assignment]  # Python's mark of such a module.


def hide_engine_without_kernels() -> None:
    """`hide_engine` where it has no kernels: its own error is none that megatron-core expects of a
    library that is not installed."""
    if _NAME in sys.modules or _WITHOUT_LIBRARIES in os.environ:
        return
    spec = find_engine()
    if spec is not None and not has_kernels(spec):
        hide_engine()


def folder_of(spec: ModuleSpec) -> Path:
    """The package's folder."""
    assert spec.origin is not None, "the package has an __init__.py"
    return Path(spec.origin).parent


def compiled_names(spec: ModuleSpec) -> set[str]:
    """Every name of the compiled module that Transformer Engine's files mention."""
    found: set[str] = set()
    for file in (folder_of(spec) / "pytorch").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        found |= set(re.findall(r"\btex\.([A-Za-z]\w*)", text))
        for names in re.findall(r"from transformer_engine_torch import \(?([\w\s,]+)\)?", text):
            found |= set(re.findall(r"[A-Za-z]\w*", names))
    return found
