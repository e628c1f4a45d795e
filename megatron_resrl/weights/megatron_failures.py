"""What megatron-core's dist_checkpointing raises and warns of, in our words."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from megatron_resrl.platform.phases import name_rank


@contextlib.contextmanager
def named_failures(what: str, kind: type[Exception]) -> Iterator[None]:
    """Turns what the two checkpoint libraries raise, and every `OSError`, into one error.

    torch's own class gathers the errors of all ranks and is not an `Exception`, so that it would
    slip past every handler.

    Args:
        what: Could not be done; the message begins with it.
        kind: Of error that is raised.
    """
    try:
        yield
    except CheckpointException as error:
        reasons = [f"{name_rank(rank)}: {reason!r}" for rank, (reason, _) in error.failures.items()]
        raise kind(f"{what}: {'; '.join(reasons)}") from error
    except (CheckpointingException, OSError) as error:
        raise kind(f"{what}: {error}") from error


@contextlib.contextmanager
def without_deprecations() -> Iterator[None]:
    """Silences warnings about deprecated torch functions that megatron-core calls.

    For the main thread only: filters belong to the process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
