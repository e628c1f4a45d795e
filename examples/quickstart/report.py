"""Draws a finished run and tabulates what it changed.

    python examples/quickstart/report.py outputs/quickstart/run

reads `metrics.jsonl` in that directory, writes `report.png` and `report.md` beside it and prints
the tables.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display needed; before pyplot chooses one

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator, PercentFormatter

Record = Mapping[str, float | None]
"""One line of metrics.jsonl: `step`, `time` and the metrics; null where not finite."""

AVERAGE = "/avg@"
TRAINING_COLOUR = "#8a94a6"
HELD_OUT_COLOUR = "#c2410c"


def read_metrics(path: Path) -> list[Record]:
    """Reads a run's metrics.

    Args:
        path: A metrics.jsonl file.

    Returns:
        One record per step, in order.

    Raises:
        SystemExit: There is no such file, or the run has not evaluated and trained yet.
    """
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; give the output_dir of a run that has started")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    if not training_steps(records) or len(evaluations(records)) < 2:
        raise SystemExit(
            f"{path} has {len(training_steps(records))} training steps and "
            f"{len(evaluations(records))} evaluations; a report needs at least 1 and 2"
        )
    return records


def evaluations(records: Sequence[Record]) -> list[Record]:
    """The records with an evaluation, the one before training first."""
    return [record for record in records if any(AVERAGE in name for name in record)]


def training_steps(records: Sequence[Record]) -> list[Record]:
    """The records of training steps."""
    return [record for record in records if "reward/mean" in record]


def before_and_after(records: Sequence[Record]) -> str:
    """Table of every evaluation metric before the first and after the last step, Markdown."""
    first, *_, last = evaluations(records)
    rows = ["| held-out questions | before | after | change |", "|---|---:|---:|---:|"]
    for name, old in first.items():
        new = last.get(name)
        if not name.startswith("eval/") or old is None or new is None:
            continue
        label = name.removeprefix("eval/").replace("/", " ").replace("_", " ")
        if "@" in name:
            cells = f"{old:.1%} | {new:.1%} | {100 * (new - old):+.1f} points"
        else:
            cells = f"{old:.1f} | {new:.1f} | {new - old:+.1f}"
        rows.append(f"| {label} | {cells} |")
    return "\n".join(rows)


def time_per_step(records: Sequence[Record]) -> str:
    """Table of where a training step's time goes, averaged over the steps, Markdown."""
    steps = training_steps(records)
    phases = [name for name in steps[0] if name.startswith("time/") and name != "time/step"]
    mean = {name: sum(step[name] or 0.0 for step in steps) / len(steps) for name in phases}
    whole = sum(mean.values())
    rows = [f"| one of {len(steps)} training steps | seconds | share |", "|---|---:|---:|"]
    for name, seconds in sorted(mean.items(), key=lambda item: -item[1]):
        rows.append(f"| {name.removeprefix('time/')} | {seconds:.2f} | {seconds / whole:.1%} |")
    rows.append(f"| **step** | **{whole:.2f}** | |")
    return "\n".join(rows)


def draw(records: Sequence[Record], path: Path) -> None:
    """Plots training reward and held-out accuracy over steps.

    Args:
        records: All records of the run.
        path: Where the PNG goes.
    """
    steps, held_out = training_steps(records), evaluations(records)
    accuracy = next(name for name in held_out[0] if AVERAGE in name)
    figure, axes = plt.subplots(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes.plot(
        [step["step"] for step in steps],
        [step["reward/mean"] for step in steps],
        color=TRAINING_COLOUR,
        linewidth=1.5,
        label="training questions: mean reward of the step's rollouts",
    )
    axes.plot(
        [record["step"] for record in held_out],
        [record[accuracy] for record in held_out],
        color=HELD_OUT_COLOUR,
        linewidth=2,
        marker="o",
        label=f"held-out questions: {accuracy.rsplit('/', 1)[1]}",
    )
    for record in (held_out[0], held_out[-1]):
        axes.annotate(
            f"{record[accuracy]:.0%}",
            (record["step"], record[accuracy]),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            color=HELD_OUT_COLOUR,
            fontweight="bold",
        )
    axes.set(xlabel="training step", ylabel="correct answers", ylim=(0, 1))
    axes.set_title("SmolLM2-135M-Instruct learns its times tables", loc="left", fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="y", color="#e5e7eb")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    figure.savefig(path)
    plt.close(figure)


def main(arguments: Sequence[str]) -> None:
    """Reports on the run whose output directory is the only argument."""
    if len(arguments) != 1:
        raise SystemExit("usage: python examples/quickstart/report.py OUTPUT_DIR")
    directory = Path(arguments[0])
    records = read_metrics(directory / "metrics.jsonl")
    draw(records, directory / "report.png")
    tables = f"{before_and_after(records)}\n\n{time_per_step(records)}\n"
    picture = "![Reward and held-out accuracy over training steps](report.png)"
    (directory / "report.md").write_text(f"{picture}\n\n{tables}", encoding="utf-8")
    print(f"{tables}\nwritten: {directory / 'report.md'} and {directory / 'report.png'}")


if __name__ == "__main__":
    main(sys.argv[1:])
