"""The operations on this rank's GPU that a transfer between GPUs needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.multiprocessing.reductions import reduce_tensor


class Gpu:
    """The CUDA device of this rank and its current stream."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())

    @property
    def uuid(self) -> str:
        """Identifies the device in every process."""
        return str(torch.cuda.get_device_properties(self.device).uuid)

    @property
    def stream(self) -> int:
        """Handle of the calling thread's current stream."""
        return torch.cuda.current_stream(self.device).cuda_stream

    def enter_thread(self) -> None:
        """Selects the device in a new thread, which starts with device 0."""
        torch.cuda.set_device(self.device)

    def mark(self) -> Callable[[], bool]:
        """Returns a function that tells whether all work that is now on the stream is done."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event.query

    def synchronize(self) -> None:
        """Waits for the current stream."""
        torch.cuda.current_stream(self.device).synchronize()

    def share(self, buffer: torch.Tensor) -> tuple:
        """A handle with which a process on the same device can read the buffer."""
        return reduce_tensor(buffer)[1]

    def collect(self) -> None:
        """Frees buffers that no process reads any more."""
        torch.cuda.ipc_collect()
