"""What one rank does for all: file handling, whose outcome every rank learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from megatron_resrl.checkpoint.folders import CheckpointError
from megatron_resrl.errors import InputError, RunError
from megatron_resrl.platform.distributed import broadcast_object

Result = TypeVar("Result")


def on_first_rank(action: Callable[[], Result], group: dist.ProcessGroup | None = None) -> Result:
    """Runs `action` on global rank 0; all ranks of `group` get its result, or raise its error.

    Raises:
        RunError, InputError: The action raised it.
        CheckpointError: The action raised an `OSError`.
    """
    result, error = None, None
    if dist.get_rank() == 0:
        try:
            result = action()
        except (RunError, InputError) as problem:
            error = problem
        except OSError as problem:
            error = CheckpointError(f"a file of the run cannot be written or read: {problem}")
    result, error = broadcast_object((result, error), group=group)
    if error is not None:
        error.common = True
        raise error
    return result
