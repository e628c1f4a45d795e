"""Python's garbage collector beside long steps."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def start_up_left_alone() -> Iterator[None]:
    """Inside the block the collector passes over what was there before.

    Imports and models leave half a million objects that live until the process ends. A full
    collection looks at each of them, which takes half a second, and comes at another moment on
    every rank, while the others wait.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
