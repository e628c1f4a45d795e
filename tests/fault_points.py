"""Points of a run at which a test can have something happen in it.

They are audit events of CPython and of the product, so that nothing is patched:

    phase:NAME      a named phase is entered
    write:ENDING    a file whose name ends so is opened for writing
    rename:ENDING   something gets a name that ends so
    remove:PART     a folder with such a name is deleted
    group:R/I       group I of round R has been logged
    import:NAME     a module is imported
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any


def install(action: Callable[[], None], point: str, step: int | None, rank: int) -> None:
    """Has an action run once, when this process comes to a point.

    Args:
        action: What happens.
        point: Where.
        step: The one that the loop has begun; 0 before the first; None: any. A checkpoint that is
            written in the background is one of a step before.
        rank: In processes of other ranks nothing happens.
    """
    now = {"step": 0, "armed": 1}

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "megatron_resrl.step":
            now["step"] = args[0]
        elif (
            now["armed"]
            and step in (None, now["step"])
            and _is_point(point, event, args)
            and int(os.environ.get("RANK", "0")) == rank
        ):
            now["armed"] = 0
            action()

    sys.addaudithook(hook)


def _is_point(point: str, event: str, args: tuple[Any, ...]) -> bool:
    kind, _, name = point.partition(":")
    if kind == "phase":
        return event == "megatron_resrl.phase" and args[0] == name
    if kind == "write":
        writing = event == "open" and isinstance(args[2], int) and args[2] & os.O_ACCMODE
        return bool(writing) and str(args[0]).endswith(name)
    if kind == "group":
        return event == "megatron_resrl.group" and f"{args[1]}/{args[2]}" == name
    if kind == "import":
        return event == "import" and args[0] == name
    if kind == "rename":
        return event == "os.rename" and str(args[1]).endswith(name)
    return event == "shutil.rmtree" and name in str(args[0])
