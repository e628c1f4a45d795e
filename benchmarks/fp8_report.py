"""The page that benchmarks/fp8_emulated.py prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from machine import command, describe

PLAIN = ("fp32", "bf16")
RECIPES = ("tensorwise", "delayed", "blockwise", "mxfp8")
FORMATS = (*PLAIN, *RECIPES)
PARTS = ("quickstart", "small", "curves")
QUANTILES = (0.5, 0.9, 0.99)
TRAINED_STEPS = 10
"""Of the small model before its formats are compared: half of its answers are then right."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def report(found: dict[str, Any]) -> str:
    """The page of results."""
    packages = ("torch", "megatron-core", "transformers")
    where = describe(packages, torch.get_num_threads())
    lines = [
        "# FP8, emulated on a CPU",
        "",
        "**Emulated on a CPU, not measured on a GPU.** "
        f"`{command()}`, {where}. "
        "Transformer Engine 2.11's own Python with real rounding to e4m3 and e5m2, sums in fp32.",
    ]
    names = {
        "quickstart": "The quickstart's model (SmolLM2-135M-Instruct, 30 layers)",
        "small": f"A Llama of 0.1 M parameters after {TRAINED_STEPS} steps of ResRL in fp32",
    }
    for part, name in names.items():
        if part in found:
            lines += ["", f"## {name}", "", *_one_step_lines(found[part])]
    if "curves" in found:
        lines += ["", "## Training the small model", "", *_curve_lines(found["curves"])]
    return "\n".join(lines) + "\n"


def _one_step_lines(found: dict[str, dict[str, float]]) -> list[str]:
    exact = found["fp32"]
    rows = []
    for number_format in FORMATS[1:]:
        one = found[number_format]
        rows.append(
            [
                number_format,
                f"{one['mean']:+.4f}",
                f"{one['mean_abs']:.4f}",
                f"{one['max_abs']:.3f}",
                f"{one['kl']:.1e}",
                f"{one['q_low']:.4f}",
                f"{one['q_high']:.4f}",
                " / ".join(f"{one[f'weight_{q}']:.3f}" for q in QUANTILES),
                f"{one['norm']:.4f}",
                f"{one['cosine']:.4f}",
            ]
        )
    head = [
        "format",
        "log-prob, mean change",
        "mean abs",
        "max abs",
        "KL",
        "q_lo",
        "q_hi",
        "weights, abs change: median / 90 % / 99 %",
        "gradient norm",
        "cosine of gradients",
    ]
    return [
        f"One step on {exact['tokens']:.0f} tokens that the fp32 policy has sampled (mean reward "
        f"{exact['reward']:.2f}), beside fp32. Residual quantiles q_lo and q_hi and gradient norms "
        "are ratios to fp32's; weights are those of tokens of incorrect responses, from 0 to 1. "
        "The cosine is of the whole gradients.",
        "",
        *table(head, rows),
    ]


def _curve_lines(found: dict[str, Any]) -> list[str]:
    own, replayed = found["own"], found["replayed"]
    steps, seeds = len(own["fp32"][0]), len(own["fp32"])
    windows = [range(first, first + 5) for first in range(0, steps, 5)]
    rows = []
    for number_format in FORMATS:
        cells = [number_format]
        for window in windows:
            means = [statistics.mean(run[step] for step in window) for run in own[number_format]]
            spread = f" ± {statistics.stdev(means):.3f}" if seeds > 1 else ""
            cells.append(f"{statistics.mean(means):.3f}{spread}")
        rows.append(cells)
    head = ["format", *(f"steps {window.start + 1}-{window.stop}" for window in windows)]
    lines = [
        "Mean reward of five steps on rollouts of its own; number of seeds, over which mean and "
        f"standard deviation are taken: {seeds}.",
        "",
        *table(head, rows),
        "",
        "The same rollouts, those of fp32 with the first seed, in every format: distance of the "
        "loss from fp32's, and ratio of the gradient norms, means over five steps. From the second "
        "step on the weights differ, too.",
        "",
    ]
    exact, rows = replayed["fp32"], []
    for number_format in FORMATS[1:]:
        one, cells = replayed[number_format], [number_format]
        for window in windows:
            loss = statistics.mean(abs(one["loss"][s] - exact["loss"][s]) for s in window)
            ratio = statistics.mean(one["grad_norm"][s] / exact["grad_norm"][s] for s in window)
            cells.append(f"{loss:.4f}, {ratio:.3f}")
        rows.append(cells)
    largest = max(map(abs, exact["loss"]))
    return [*lines, *table(head, rows), "", f"The largest loss of fp32 is {largest:.3f}."]
