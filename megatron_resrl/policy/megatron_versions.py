"""What differs between the versions of megatron-core that the package runs on: 0.16 to 0.19."""

from __future__ import annotations

import functools
from typing import Any


def module_of(spec: Any) -> Any:
    """The class that a specification builds. From 0.19 on, MLPs' are partial functions."""
    return spec.func if isinstance(spec, functools.partial) else spec.module


def submodules_of(spec: Any) -> Any:
    """What a specification gives the class for its parts."""
    return spec.keywords["submodules"] if isinstance(spec, functools.partial) else spec.submodules
