"""Sandboxes of this machine, for tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.sandbox.backends import Local, try_backend

BACKENDS: tuple[Local, ...] = ("bubblewrap", "landlock")


def require_backend(backend: Local) -> None:
    """Skips the test where the machine has no such sandbox, with the reason."""
    if problem := try_backend(backend).problem:
        pytest.skip(f"{backend}: {problem}")


def settings_of(backend: Local) -> CodeConfig:
    """Short limits, so that programs that hang cost little."""
    require_backend(backend)
    return CodeConfig(backend=backend, timeout_s=0.6, memory_mb=256)


def processes() -> Iterator[tuple[int, str]]:
    """Number and command of every process of this machine that may be seen."""
    import psutil

    for each in psutil.process_iter(["pid", "cmdline"]):
        yield each.info["pid"], " ".join(each.info["cmdline"] or [])
