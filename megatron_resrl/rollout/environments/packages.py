"""Packages that one environment needs and the others do not."""

from __future__ import annotations

import importlib
from typing import Any

from megatron_resrl.errors import InputError


class MissingPackage(InputError):
    """A package is not installed; says how to install it."""


def import_package(module: str, *, extra: str | None = None, source: str = "") -> Any:
    """A module of an optional package.

    Args:
        module: Its dotted name.
        extra: Of this project, which installs the package.
        source: How to install a package that no extra can.

    Raises:
        MissingPackage: It, or something that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        install = source if extra is None else f"pip install 'megatron-resrl[{extra}]'"
        raise MissingPackage(
            f"the package of {module} is not installed ({error}); {install}"
        ) from error
