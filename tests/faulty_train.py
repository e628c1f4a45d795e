"""Trains like the product's command, and does something terrible at a chosen point.

    faulty_train.py [--action A --at POINT [--at_step N] --on_rank R] RECIPE [--setting VALUE]

Points are audit events of CPython and of the product, so that nothing is patched:

    phase:NAME      a named phase is entered
    write:ENDING    a file whose name ends so is opened for writing
    rename:ENDING   something gets a name that ends so
    remove:PART     a folder with such a name is deleted
    group:R/I       group I of round R has been logged

The step is the one that the loop has begun; 0 before the first; without one, any. A checkpoint that
is written in the background is one of a step before. It happens once.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

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


def _is_point(point: str, event: str, args: tuple[Any, ...]) -> bool:
    kind, _, name = point.partition(":")
    if kind == "phase":
        return event == "megatron_resrl.phase" and args[0] == name
    if kind == "write":
        writing = event == "open" and isinstance(args[2], int) and args[2] & os.O_ACCMODE
        return bool(writing) and str(args[0]).endswith(name)
    if kind == "group":
        return event == "megatron_resrl.group" and f"{args[1]}/{args[2]}" == name
    if kind == "rename":
        return event == "os.rename" and str(args[1]).endswith(name)
    return event == "shutil.rmtree" and name in str(args[0])


def install(action: str, point: str, step: int | None) -> None:
    """Arms the fault."""
    now = {"step": 0, "armed": 1}

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "megatron_resrl.step":
            now["step"] = args[0]
        elif now["armed"] and step in (None, now["step"]) and _is_point(point, event, args):
            now["armed"] = 0
            ACTIONS[action]()

    sys.addaudithook(hook)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--action", choices=ACTIONS)
    parser.add_argument("--at")
    parser.add_argument("--at_step", type=int)
    parser.add_argument("--on_rank", type=int)
    fault, rest = parser.parse_known_args()
    if fault.action and int(os.environ.get("RANK", "0")) == fault.on_rank:
        install(fault.action, fault.at, fault.at_step)
    sys.argv[1:] = ["train", *rest]
    run()


if __name__ == "__main__":
    main()
