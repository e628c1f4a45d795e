"""Tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Aligned lines: words to the left, numbers (all rows but the first) to the right.

    Args:
        rows: [rows][columns], the heads first.
    """
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    right = [
        all(row[place][:1].isdigit() or row[place] in ("", "-") for row in rows[1:])
        for place in range(len(rows[0]))
    ]
    for row in rows:
        cells = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        yield "  " + "  ".join(cells).rstrip()
