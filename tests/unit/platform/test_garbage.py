"""What Python's garbage collector looks at during a run."""

from __future__ import annotations

import gc
import weakref

from megatron_resrl.platform.garbage import start_up_left_alone


class Node:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.own = self


def test_start_up_left_alone_passes_over_older_objects() -> None:
    older = len(gc.get_objects())
    with start_up_left_alone():
        # The frozen ones are not listed.
        assert len(gc.get_objects()) < older / 10
    assert len(gc.get_objects()) > older / 2


def test_start_up_left_alone_still_collects_newer_objects() -> None:
    with start_up_left_alone():
        newer = weakref.ref(Node())
        gc.collect()
        assert newer() is None


def test_start_up_left_alone_ends_with_an_error() -> None:
    frozen = gc.get_freeze_count()
    try:
        with start_up_left_alone():
            raise KeyError
    except KeyError:
        assert gc.get_freeze_count() == frozen
