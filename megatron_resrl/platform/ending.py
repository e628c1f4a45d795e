"""A process that ends, whatever hangs on the way out."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Iterator

from megatron_resrl.errors import InputError, RunError, exit_status

ENDING_S = 20.0
"""Seconds that closing connections, helper processes and threads may take."""

_FLUSH_S = 2.0
"""Seconds for the last words: whoever reads them may hang as well."""


class Deadline:
    """Ends the process with `os._exit` unless it is cancelled within `ENDING_S` of its start.

    Connections to dead ranks, pools and threads may wait for ever when they are closed; a rank
    that stays keeps the launcher from ending or restarting the job.
    """

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def start(self, error: BaseException | None) -> None:
        """Starts the clock.

        Args:
            error: What ends the process, said and turned into its status if time runs out; None:
                nothing went wrong until here.
        """
        self._timer = threading.Timer(ENDING_S, _end, [error])
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """All is closed.

        The clock's thread lets go of the error, whose frames hold process groups; it must have done
        so before the interpreter ends, or giving one up then would abort the process.
        """
        if self._timer:
            self._timer.cancel()
            self._timer.join()
            self._timer = None


@contextlib.contextmanager
def process_ends_with_block() -> Iterator[None]:
    """For the outermost block of a process: what is still open after it cannot keep it alive."""
    try:
        yield
    finally:
        Deadline().start(sys.exc_info()[1])


def _end(error: BaseException | None) -> None:
    saying = threading.Thread(target=_say, args=[error], daemon=True)
    saying.start()
    saying.join(_FLUSH_S)
    os._exit(1 if error is None else exit_status(error))


def _say(error: BaseException | None) -> None:
    if isinstance(error, (InputError, RunError)):
        print(error, file=sys.stderr)
    elif error is not None and not isinstance(error, SystemExit):
        traceback.print_exception(error)
    print(
        f"rank {os.environ.get('RANK', '0')}: closing connections and helper processes took more "
        f"than {ENDING_S:.0f} s; the process ends without. It was here:",
        file=sys.stderr,
        flush=True,
    )
    faulthandler.dump_traceback()
    sys.stdout.flush()
