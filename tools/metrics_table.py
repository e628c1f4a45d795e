"""Writes the table in docs/metrics.md anew from megatron_resrl/observe/metric_names.py.

python tools/metrics_table.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_resrl.observe.metric_names import metrics_table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"


def with_table(page: str) -> str:
    """The text of the page with the present table in place of its old one."""
    before, _, rest = page.partition("| metric |")
    after = rest[rest.find("\n\n") + 1 :] if "\n\n" in rest else ""
    return before + metrics_table() + after


def main() -> None:
    """Rewrites the page."""
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
