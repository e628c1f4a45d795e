"""What a rule has found, and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

Severity = Literal["wrong", "note"]
"""`wrong`: a run fails, hangs, loses data or is much slower; `note`: probably not meant."""

_NAMED_PLACES = 4
"""Places spelled out where many share a finding."""


@dataclass(frozen=True)
class Finding:
    """One thing that a rule has found."""

    rule: str
    """Area and name, e.g. `folder.node_local`; stable between versions."""
    where: str
    """Host, rank or pair of ranks; empty: the whole job."""
    problem: str
    """What is so, and what follows."""
    remedy: str
    """What to do about it."""
    severity: Severity = "wrong"

    @property
    def area(self) -> str:
        """The area that the rule belongs to."""
        return self.rule.partition(".")[0]

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        return f"{where}{self.problem}; {self.remedy}"


def at(where: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings, with the place that they hold for."""
    return (replace(finding, where=where) for finding in findings)


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """One finding for all places that share it; what is wrong comes before notes.

    Args:
        findings: In any order.

    Returns:
        In the order of `findings` otherwise.
    """
    places: dict[Finding, list[str]] = {}
    for finding in findings:
        places.setdefault(replace(finding, where=""), []).append(finding.where)
    found = [replace(finding, where=_joined(where)) for finding, where in places.items()]
    return sorted(found, key=lambda finding: finding.severity == "note")


def _joined(places: list[str]) -> str:
    """`host a, host b` -> `hosts a, b`, and no more than a few of them."""
    names = list(dict.fromkeys(filter(None, places)))
    shown, more = names[:_NAMED_PLACES], len(names) - _NAMED_PLACES
    for kind in ("host ", "rank "):
        if len(shown) > 1 and all(name.startswith(kind) for name in shown):
            shown[0] = f"{kind.strip()}s {shown[0].removeprefix(kind)}"
            shown[1:] = [name.removeprefix(kind) for name in shown[1:]]
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
