"""Sandboxes of this machine, for tests."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.errors import SettingError
from megatron_resrl.sandbox.backends import Local, find_backend, try_backend

BACKENDS: tuple[Local, ...] = ("bubblewrap", "landlock")


def require_backend(backend: Local) -> None:
    """Skips the test where the machine has no such sandbox, with the reason."""
    if problem := try_backend(backend).problem:
        pytest.skip(f"{backend}: {problem}")


def require_any() -> None:
    """Skips the test where the machine has no sandbox, with the reason."""
    try:
        find_backend(CodeConfig())
    except SettingError as error:
        pytest.skip(str(error))


def processes() -> Iterator[tuple[int, str]]:
    """Number and command of every process of this machine that may be seen."""
    for each in psutil.process_iter(["pid", "cmdline"]):
        yield each.info["pid"], " ".join(each.info["cmdline"] or [])
