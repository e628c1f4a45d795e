"""A comparison as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_resrl.errors import InputError
from megatron_resrl.evaluation.plot import Points, draw_points, new_figure, save_figure


def plot_comparison(found: Mapping[str, Any], path: str) -> None:
    """Draws the differences from the baseline with their intervals, one panel for each set.

    Args:
        found: From `compare`.
        path: Of the picture; its ending says the format.

    Raises:
        InputError: Matplotlib is not installed, or does not write such files.
    """
    blocks = found["sets"]
    figure, panels = new_figure(len(blocks), len(blocks[0]["arms"]))
    for panel, block in zip(panels, blocks, strict=True):
        rows = {row["arm"]: row for row in block["arms"] if "difference" in row}
        differences = {name: row["difference"] for name, row in rows.items()}
        intervals = {name: row["interval"] for name, row in rows.items()}
        draw_points(panel, list(rows), Points("difference", differences, intervals))
        panel.axvline(0, color="grey", linewidth=1)
        panel.set_title(block["set"])
        panel.set_xlabel(f"{found['metric']}, over {found['baseline']}")
    try:
        save_figure(figure, path)
    except ValueError as error:
        raise InputError(f"--plot {Path(path).name}: {error}") from error
