"""Reward functions that behave well or badly, as the response asks. Run in grader processes."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import re
import signal
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any


def behave(response: str, ground_truth: Any, **context: Any) -> Any:
    """Does what the response says."""
    word, _, argument = response.partition(" ")
    return {
        "echo": lambda: float(argument),
        "pid": os.getpid,
        "nap": lambda: time.sleep(float(argument)) or 1.0,
        "loop": _loop,
        "stubborn": _swallow_everything,
        "sleep": lambda: time.sleep(3600),
        "regex": lambda: re.match(r"(a+)+$", "a" * 60 + "b"),
        "c": lambda: collections.deque(itertools.repeat(0), maxlen=0),
        "raise": lambda: _fail(argument),
        "system_exit": sys.exit,
        "crash": _crash,
        "terminated_once": lambda: _terminated_once(ground_truth),
        "own_session": lambda: float(os.getsid(0) == os.getpid()),
        "value": lambda: _VALUES[argument],
        "allocate": lambda: float(len(bytearray(int(argument) * 2**20)) > 0),
        "killed": lambda: os.kill(os.getpid(), signal.SIGKILL) or time.sleep(3600),
        "print": lambda: _print(argument),
    }[word]()


def check_ground_truth(value: Any) -> None:
    """Accepts texts and hangs, crashes or fails where they ask for it."""
    if value == "hang":
        _loop()
    if value == "crash":
        _crash()
    if value == "type error":
        raise TypeError("no text")
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text: give a text")


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None
) -> dict[str, Any]:
    """A function with verl's arguments and result."""
    given = (data_source, solution_str, ground_truth, extra_info)
    return {"score": given == ("the source", "the response", "truth", {"index": 3}), "acc": 0.0}


def compare_everything(
    response: str, ground_truth: Any, *, prompt: str, data_source: str, extra: dict[str, Any]
) -> bool:
    """Whether every argument has come through."""
    given = (response, ground_truth, prompt, data_source, extra)
    return given == ("the response", {"target": [1, "2"]}, "the prompt", "the source", {"k": None})


def count_heavy_imports(response: str, ground_truth: Any, **context: Any) -> int:
    """How many of the libraries that are slow to import are in this process."""
    import megatron_resrl.rewards.math  # noqa: F401

    return len({"torch", "transformers", "megatron", "numpy", "pyarrow"} & sys.modules.keys())


_VALUES = {
    "nan": float("nan"),
    "inf": float("inf"),
    "none": None,
    "text": "1.0",
    "huge": 10**400,
    "true": True,
    "int": 2,
    "decimal": Decimal("0.5"),
    "complex": 1j,
    "list": [1.0],
    "dict": {"score": 0.25, "acc": True, "format": 1.0},
    "tuple": (0.75, {"reason": "rounded"}),
    "dict without score": {"acc": 1.0},
    "dict with text": {"score": "1.0"},
    "empty tuple": (),
}


def _print(text: str) -> float:
    print(text)
    print(text, file=sys.stderr)
    os.write(1, f"{text} from C\n".encode())
    return 1.0


def _terminated_once(mark: str) -> float:
    """As by a launcher that ends the job; not again once the mark is there."""
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3600)
    return 1.0


def _loop() -> None:
    while True:
        pass


def _swallow_everything() -> None:
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(3600)


def _fail(message: str) -> None:
    raise KeyError(message)


def _crash() -> None:
    time.sleep(0.3)  # Real crashes do not come in the first millisecond of a task either.
    os._exit(41)
