"""Trains like the product's command, and does something terrible at a chosen point.

    faulty_train.py [--stage STAGE] [--action A --at POINT [--at_step N] --on_rank R]
                    RECIPE [--setting VALUE]

Points and steps are those of `fault_points.py`. It happens once.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from fault_points import install

from megatron_resrl.cli import run


def _send(target: Callable[[], int], number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(target(), number)


def _loop() -> None:
    while True:
        pass


def _raise() -> None:
    raise MemoryError("out of memory, as asked for")


def _spoil_gradient() -> None:
    """The next gradient of one parameter of the live policy is not a number."""
    from megatron_resrl.policy.policy import Policy

    policy = next(each for each in gc.get_objects() if isinstance(each, Policy))
    parameter = next(policy.modules[-1].parameters())

    def spoil(gradient: Any) -> Any:
        handle.remove()
        return gradient * float("nan")

    handle = parameter.register_hook(spoil)


ACTIONS: dict[str, Callable[[], None]] = {
    "kill": _send(os.getpid, signal.SIGKILL),
    "stop": _send(os.getpid, signal.SIGSTOP),
    "term": _send(os.getpid, signal.SIGTERM),
    "usr1": _send(os.getpid, signal.SIGUSR1),
    "term launcher": _send(os.getppid, signal.SIGTERM),
    "loop": _loop,
    "raise": _raise,
    "nan": _spoil_gradient,
}


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--stage", default="train", help="the command")
    parser.add_argument("--action", choices=ACTIONS)
    parser.add_argument("--at")
    parser.add_argument("--at_step", type=int)
    parser.add_argument("--on_rank", type=int)
    fault, rest = parser.parse_known_args()
    if fault.action:
        install(ACTIONS[fault.action], fault.at, fault.at_step, fault.on_rank)
    sys.argv[1:] = [fault.stage, *rest]
    run()


if __name__ == "__main__":
    main()
