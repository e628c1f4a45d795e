"""A comparison as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_resrl.evaluation.bootstrap import LEVEL
from megatron_resrl.observe.text_table import columns

_SHOWN = 8
"""Rows of questions that are named."""


def comparison_text(found: Mapping[str, Any]) -> str:
    """What `compare` returns, as tables."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"{found['metric']}, differences from {found['baseline']} with {LEVEL:.0%} intervals"
    for block in found["sets"]:
        yield ""
        questions = f", {block['questions']} questions" if "questions" in block else ""
        left_out = block.get("left_out")
        yield (
            block["set"]
            + questions
            + (f" ({left_out} more were not answered in all runs)" if left_out else "")
        )
        yield from _table(block)
    yield ""
    single = sorted(
        {row["arm"] for block in found["sets"] for row in block["arms"] if row["runs"] == 1}
    )
    if single:
        yield f"one run only: {', '.join(single)}; its intervals do not hold for another seed"
    yield from _budget_lines(found["budgets"])
    yield from _overlap_lines(found["overlap"])


def _table(block: Mapping[str, Any]) -> Iterator[str]:
    heads = ("arm", "runs", "value", "tokens", "difference", "interval", "p (Holm)", "detectable")
    return columns([heads, *map(_cells, block["arms"])])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    tokens = f"{row['response_length']:.0f}" if "response_length" in row else ""
    own = (row["arm"], str(row["runs"]), f"{row['value']:.4f}", tokens)
    if "difference" not in row:
        return (*own, "", "", "", "")
    low, high = row["interval"]
    return (
        *own,
        f"{row['difference']:+.4f}",
        f"[{low:+.4f}, {high:+.4f}]",
        f"{row['p_holm']:.4f}",
        f"{row['smallest_difference']:.4f}",
    )


def _budget_lines(budgets: list[dict[str, Any]]) -> Iterator[str]:
    if not budgets:
        yield "budgets: no difference found"
    for each in budgets:
        values = ", ".join(f"{place}: {value}" for place, value in each["values"].items())
        yield f"budgets differ in {each['what']} ({values})"


def _overlap_lines(overlap: list[dict[str, Any]]) -> Iterator[str]:
    for each in overlap:
        if "unknown" in each:
            yield f"training questions of {each['arm']} were not looked at: {each['unknown']}"
            continue
        shared = {name: rows for name, rows in each["questions"].items() if rows}
        if not shared:
            yield f"training questions of {each['arm']}: none is in the evaluation"
        for name, rows in shared.items():
            shown = ", ".join(map(str, rows[:_SHOWN])) + (", ..." if rows[_SHOWN:] else "")
            yield (f"training questions of {each['arm']}: {len(rows)} are in {name} (rows {shown})")
