"""A comparison as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_resrl.errors import InputError


def plot_comparison(found: Mapping[str, Any], path: str) -> None:
    """Draws the differences from the baseline with their intervals, one panel for each set.

    Args:
        found: From `compare`.
        path: Of the picture; its ending says the format.

    Raises:
        InputError: Matplotlib is not installed, or does not write such files.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("--plot needs matplotlib: pip install 'megatron-resrl[plot]'") from error
    blocks = found["sets"]
    figure = Figure(figsize=(3.2 * len(blocks), 1.2 + 0.4 * len(blocks[0]["arms"])))
    panels = figure.subplots(1, len(blocks), sharey=True, squeeze=False)[0]
    for panel, block in zip(panels, blocks, strict=True):
        rows = [row for row in block["arms"] if "difference" in row]
        low = [row["difference"] - row["interval"][0] for row in rows]
        high = [row["interval"][1] - row["difference"] for row in rows]
        panel.errorbar(
            [row["difference"] for row in rows], range(len(rows)), xerr=[low, high], fmt="o"
        )
        panel.axvline(0, color="grey", linewidth=1)
        panel.set_yticks(range(len(rows)), [row["arm"] for row in rows])
        panel.set_title(block["set"])
        panel.set_xlabel(f"{found['metric']}, over {found['baseline']}")
    try:
        figure.savefig(path, bbox_inches="tight", dpi=150)
    except ValueError as error:
        raise InputError(f"--plot {Path(path).name}: {error}") from error
