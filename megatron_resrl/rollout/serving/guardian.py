"""Starts a server and ends it with the trainer: a script of its own, without any import of ours.

Arguments: the trainer's process id, then the server's command. It leads the server's process group
and exits with the server's status. When the trainer is gone, however it ended, the whole group is
killed; so are workers that a killed server left behind. The kernel's parent-death signal alone
is not enough: it reaches only the server itself, and fires when the starting *thread* ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

POLL_S = 0.5
"""Seconds between looks at the trainer."""
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Runs in the server process before it starts: if this script is killed, so is the server."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Runs the command of the arguments until it or the trainer ends."""
    trainer, command = int(sys.argv[1]), sys.argv[2:]
    # A SIGTERM goes to the whole group; this process stays for the server's end. A handler, not
    # SIG_IGN, which the server would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    # Slurm may send it to every process of a step before the time limit; the trainer's last step
    # needs the server, which inherits this.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    server = subprocess.Popen(command, preexec_fn=_die_with_parent)
    while os.getppid() == trainer:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = server.wait(POLL_S)
            break
    else:
        os.killpg(0, signal.SIGKILL)
    print(f"the server ended with status {status}", flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)  # Remaining workers get a moment to end by themselves.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    os._exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
