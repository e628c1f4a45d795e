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
    }[word]()


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
}


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
