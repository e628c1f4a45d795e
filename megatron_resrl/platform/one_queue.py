"""torch.cuda's streams and events for a device that does everything in the order of the calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch


def answer_streams(synchronize: Callable[[], None]) -> None:
    """Replaces torch.cuda's streams and events, for the rest of the process.

    Args:
        synchronize: Called where the host waits for a stream or an event.
    """

    class Event:
        """Work is complete when the call that does it returns."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def record(self, stream: Any = None) -> None:
            pass

        def wait(self, stream: Any = None) -> None:
            pass

        def synchronize(self) -> None:
            synchronize()

        def query(self) -> bool:
            return True

        def elapsed_time(self, other: Any) -> float:
            return 0.0

    class Stream(Event):
        """The only one: all work runs in one order."""

        def wait_stream(self, stream: Any) -> None:
            pass

        def wait_event(self, event: Any) -> None:
            pass

        def record_event(self, event: Any = None) -> Any:
            return event or Event()

    stream = Stream()
    torch.cuda.Event, torch.cuda.Stream = Event, Stream
    torch.cuda.current_stream = torch.cuda.default_stream = lambda *args, **kwargs: stream
    torch.cuda.stream = lambda _: contextlib.nullcontext()
    torch.Tensor.record_stream = lambda self, _: None
