"""Draws a finished run and tabulates what it changed; or compares several runs.

    python examples/quickstart/report.py outputs/quickstart/run
    python examples/quickstart/report.py outputs/grpo outputs/resrl ...

reads `metrics.jsonl` in each directory. Of one run it writes `report.png` and `report.md` beside
it; of several `comparison.png` and `comparison.md` beside the first, with the settings in which
their `recipe.yaml` differ. The tables are printed, too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import yaml

matplotlib.use("Agg")  # no display needed; before pyplot chooses one

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

Record = Mapping[str, float | None]
"""One line of metrics.jsonl: `step`, `time` and the metrics; null where not finite."""

AVERAGE = "/avg@"
TRAINING_COLOUR = "#8a94a6"
HELD_OUT_COLOUR = "#c2410c"


def read_metrics(path: Path, *, evaluated: bool = True) -> list[Record]:
    """Reads a run's metrics.

    Args:
        path: A metrics.jsonl file.
        evaluated: Whether evaluations before and after training are needed.

    Returns:
        One record per step, in order.

    Raises:
        SystemExit: There is no such file, or the run has not evaluated and trained yet.
    """
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; give the output_dir of a run that has started")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    if not evaluated and not training_steps(records):
        raise SystemExit(f"{path} has no training step yet")
    if evaluated and (not training_steps(records) or len(evaluations(records)) < 2):
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
    finish_plot(axes)
    figure.savefig(path)
    plt.close(figure)


def finish_plot(axes: Axes) -> None:
    """Gives axes the grid, the frame and the legend that all plots have."""
    axes.grid(axis="y", color="#e5e7eb")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9)


def comparison(runs: Mapping[str, Sequence[Record]]) -> str:
    """Table of several runs: rewards, evaluations before and after, seconds; Markdown."""
    measured = {name: evaluations(records) for name, records in runs.items()}
    named = [name for each in measured.values() for name in (each[0] if each else {})]
    metrics = list(dict.fromkeys(name for name in named if AVERAGE in name))
    titles = ["run", "steps", "reward, first tenth", "last tenth", "seconds per step"]
    titles += [metric.removeprefix("eval/").replace("/", " ") for metric in metrics]
    rows = [f"| {' | '.join(titles)} |", "|---|" + "---:|" * (len(titles) - 1)]
    for name, records in runs.items():
        steps = training_steps(records)
        tenth = max(1, len(steps) // 10)
        cells = [name, str(len(steps))]
        cells += [f"{mean(part, 'reward/mean'):.3f}" for part in (steps[:tenth], steps[-tenth:])]
        cells.append(f"{mean(steps, 'time/step'):.2f}")
        for metric in metrics:
            values = [record[metric] for record in measured[name] if record.get(metric) is not None]
            cells.append(f"{values[0]:.1%} to {values[-1]:.1%}" if values else "-")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def mean(steps: Sequence[Record], metric: str) -> float:
    """Of a metric over steps; one that was not finite counts as 0."""
    return sum(step[metric] or 0.0 for step in steps) / len(steps)


def differences(recipes: Mapping[str, Mapping[str, Any]]) -> str:
    """Table of the settings that are not the same in all recipes; Markdown.

    Args:
        recipes: Run -> its recipe.yaml.
    """
    flat = {name: dict(_flatten(recipe)) for name, recipe in recipes.items()}
    settings = dict.fromkeys(setting for recipe in flat.values() for setting in recipe)
    rows = [f"| setting | {' | '.join(flat)} |", "|---|" + "---|" * len(flat)]
    for setting in settings:
        values = [str(recipe.get(setting)) for recipe in flat.values()]
        if setting != "output_dir" and len(set(values)) > 1:
            rows.append(f"| {setting} | {' | '.join(values)} |")
    return "\n".join(rows) if len(rows) > 2 else "All settings are the same."


def _flatten(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, content in recipe.items():
        if isinstance(content, Mapping):
            yield from ((f"{section}.{name}", value) for name, value in content.items())
        else:
            yield section, content


def draw_comparison(runs: Mapping[str, Sequence[Record]], path: Path) -> None:
    """Plots the training rewards of several runs, and below them their held-out accuracies.

    Args:
        runs: Name -> all its records.
        path: Where the PNG goes.
    """
    figure, (rewards, held_out) = plt.subplots(
        2, 1, figsize=(7.2, 6.4), dpi=150, layout="constrained", sharex=True
    )
    for name, records in runs.items():
        steps, measured = training_steps(records), evaluations(records)
        numbers = [step["step"] for step in steps]
        rewards.plot(numbers, [step["reward/mean"] for step in steps], label=name)
        if measured:
            accuracy = next(key for key in measured[0] if AVERAGE in key)
            points = [(record["step"], record.get(accuracy)) for record in measured]
            label = f"{name}, {accuracy.removeprefix('eval/')}"
            held_out.plot(*zip(*points, strict=True), marker="o", label=label)
    rewards.set(ylabel="mean reward of the step's rollouts")
    held_out.set(xlabel="training step", ylabel="held-out questions")
    held_out.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (rewards, held_out):
        finish_plot(axes)
    figure.savefig(path)
    plt.close(figure)


def report(directory: Path) -> str:
    """Writes the report of one run and returns its tables."""
    records = read_metrics(directory / "metrics.jsonl")
    draw(records, directory / "report.png")
    tables = f"{before_and_after(records)}\n\n{time_per_step(records)}\n"
    picture = "![Reward and held-out accuracy over training steps](report.png)"
    (directory / "report.md").write_text(f"{picture}\n\n{tables}", encoding="utf-8")
    return f"{tables}\nwritten: {directory / 'report.md'} and {directory / 'report.png'}"


def compare(directories: Sequence[Path]) -> str:
    """Writes the comparison of several runs beside the first and returns its tables."""
    names = [directory.resolve().name for directory in directories]
    if len(set(names)) < len(names):
        names = [str(directory) for directory in directories]
    named = dict(zip(names, directories, strict=True))
    runs = {
        name: read_metrics(directory / "metrics.jsonl", evaluated=False)
        for name, directory in named.items()
    }
    tables = comparison(runs)
    files = {name: directory / "recipe.yaml" for name, directory in named.items()}
    if all(file.is_file() for file in files.values()):
        recipes = {n: yaml.safe_load(file.read_text(encoding="utf-8")) for n, file in files.items()}
        tables += f"\n\n{differences(recipes)}"
    place = directories[0]
    draw_comparison(runs, place / "comparison.png")
    picture = "![Rewards and held-out accuracies over training steps](comparison.png)"
    (place / "comparison.md").write_text(f"{picture}\n\n{tables}\n", encoding="utf-8")
    return f"{tables}\n\nwritten: {place / 'comparison.md'} and {place / 'comparison.png'}"


def main(arguments: Sequence[str]) -> None:
    """Reports on the run, or compares the runs, whose output directories are the arguments."""
    if "-h" in arguments or "--help" in arguments:
        print(__doc__.strip())
        return
    if not arguments:
        raise SystemExit("usage: python examples/quickstart/report.py RUN [RUN ...]")
    directories = [Path(argument) for argument in arguments]
    print(report(directories[0]) if len(directories) == 1 else compare(directories))


if __name__ == "__main__":
    main(sys.argv[1:])
