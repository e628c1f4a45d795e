"""Writes the tables in docs/algorithms.md anew from the registries.

python tools/algorithms_table.py
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_resrl.cli.algorithms import listing

PAGE = Path(__file__).resolve().parents[1] / "docs" / "algorithms.md"
_TABLES = {
    "algorithms": "| `algorithm.name` | formula | source | published with | options |",
    "options": "| option of every algorithm | default | meaning |",
    "weightings": "| `algorithm.weighting` | weight of a token | source | options |",
}
"""Kind -> the first line of its table, by which it is found in the page."""


def tables() -> dict[str, str]:
    """Kind -> its table as Markdown."""
    found = listing()
    rows = {
        "algorithms": [_algorithm(name, each) for name, each in found["algorithms"].items()],
        "options": [
            (f"`{name}`", f"`{json.dumps(each['default'])}`", each["meaning"])
            for name, each in found["options"].items()
        ],
        "weightings": [
            (f"`{name}`", each["summary"], each["source"], _options(each["options"]))
            for name, each in found["weightings"].items()
        ],
    }
    return {kind: _table(_TABLES[kind], lines) for kind, lines in rows.items()}


def with_tables(page: str) -> str:
    """The text of the page with the present tables in place of its old ones."""
    for kind, table in tables().items():
        old = re.compile(re.escape(_TABLES[kind]) + r"\n(\|.*\n)*")
        page = old.sub(lambda _, new=table: new, page, count=1)
    return page


def _algorithm(name: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    settings = (f"`{key}: {value}`" for key, value in entry["published_with"].items())
    return (
        f"`{name}`",
        entry["summary"],
        entry["source"],
        ", ".join(settings),
        _options(entry["options"]),
    )


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}` ({json.dumps(each['default'])})" for key, each in options.items())


def _table(head: str, rows: list[tuple[str, ...]]) -> str:
    lines = [head, "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Rewrites the page."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
