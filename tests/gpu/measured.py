"""Numbers that tests of a GPU compare with limits, written to a file as soon as they are known."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK, FAILED, NOT_RUN, NOTED = "ok", "FAILED", "not run", "noted"


@dataclass
class Results:
    """A file with one JSON object per line: section, name, status, value, limit, seconds."""

    file: Path | None
    """None: nothing is written."""
    section: str
    since: float = field(default_factory=time.monotonic)
    """End of the check before."""

    def write(self, name: str, status: str, value: Any = None, limit: str = "") -> None:
        """Appends a check; its seconds count from the check before it."""
        now = time.monotonic()
        seconds, self.since = now - self.since, now
        line = {"section": self.section, "name": name, "status": status}
        line |= {"value": value, "limit": limit, "seconds": round(seconds, 2)}
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps(line) + "\n")


@dataclass
class Measured:
    """The numbers of one test. The test goes on after a wrong one and fails at its end."""

    results: Results
    test: str
    count: int = 0
    wrong: list[str] = field(default_factory=list)

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Fails the test where `value` is larger than `limit`, or not a number."""
        self._compare(name, value, f"<= {limit:g}", value <= limit)

    def at_least(self, name: str, value: float, limit: float) -> None:
        """Fails the test where `value` is smaller than `limit`, or not a number."""
        self._compare(name, value, f">= {limit:g}", value >= limit)

    def equal(self, name: str, value: Any, expected: Any) -> None:
        """Fails the test where the two differ."""
        self._compare(name, value, f"== {expected}", value == expected)

    def note(self, name: str, value: Any, expected: str = "") -> None:
        """Writes down a number that no limit is set for, perhaps with what is expected of it."""
        self.count += 1
        self.results.write(f"{self.test}.{name}", NOTED, _finite(value), expected)

    def _compare(self, name: str, value: Any, limit: str, right: bool) -> None:
        self.count += 1
        status = OK if right else FAILED
        self.results.write(f"{self.test}.{name}", status, _finite(value), limit)
        if not right:
            self.wrong.append(f"{name} is {value}, and should be {limit}")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
