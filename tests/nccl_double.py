"""A library with the declarations of nccl.h that writes down its calls; needs a C compiler."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_resrl.rollout.weight_sync import nccl


@contextlib.contextmanager
def nccl_double(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Has `weight_sync.nccl` call the double until the block ends.

    Yields:
        What returns the lines of its calls, see `nccl_double.c`.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = Path(__file__).with_suffix(".c"), folder / "libnccl.so.2"
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    record = folder / "calls"
    record.touch()
    monkeypatch.setenv("NCCL_DOUBLE", str(record))
    monkeypatch.setenv(nccl.LIBRARY_VARIABLE, str(library))
    nccl.library.cache_clear()
    try:
        yield lambda: record.read_text().splitlines()
    finally:
        nccl.library.cache_clear()
