"""Tabulates and draws what each stage of the example can solve; see README.md.

    python examples/pretrain_to_rl/stages.py outputs/pretrain_to_rl/resrl [RUN ...]

reads `pretrain_evaluation/evaluation.json` beside the first run, and `metrics.jsonl` of each: the
evaluation before the first step is that of fine-tuning, the last one that of the run. Writes
`stages.md` and `stages.png` beside the first run and prints the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "quickstart"))

import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter
from report import evaluations, finish_plot, read_metrics

PASS = "eval/heldout/pass@"
COLOURS = ("#8a94a6", "#2563eb", "#c2410c", "#15803d", "#7e22ce", "#a16207")


def pass_at(metrics: Mapping[str, float | None]) -> dict[int, float]:
    """k -> pass@k of an evaluation."""
    found = {int(name.removeprefix(PASS)): v for name, v in metrics.items() if PASS in name}
    return {k: value for k, value in sorted(found.items()) if value is not None}


def read_stages(runs: Sequence[Path]) -> dict[str, dict[int, float]]:
    """Stage -> k -> pass@k, in the order of the stages.

    Args:
        runs: Output directories of reinforcement learning from the same fine-tuned model.

    Raises:
        SystemExit: A stage has not been evaluated.
    """
    base = runs[0].parent / "pretrain_evaluation/evaluation.json"
    if not base.is_file():
        raise SystemExit(f"{base} does not exist; run.sh evaluates the pretrained model")
    found = {"pretraining": pass_at(json.loads(base.read_text(encoding="utf-8"))["metrics"])}
    for run in runs:
        first, *_, last = evaluations(read_metrics(run / "metrics.jsonl"))
        found.setdefault("fine-tuning", pass_at(first))
        found[f"reinforcement learning: {run.name}"] = pass_at(last)
    return found


def table(stages: Mapping[str, Mapping[int, float]]) -> str:
    """Markdown."""
    ks = next(iter(stages.values()))
    rows = [f"| after | {' | '.join(f'pass@{k}' for k in ks)} |", "|---|" + "---:|" * len(ks)]
    for stage, values in stages.items():
        rows.append(f"| {stage} | {' | '.join(f'{values[k]:.1%}' for k in ks)} |")
    return "\n".join(rows)


def draw(stages: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Plots pass@k over k, a line for each stage, as a PNG file."""
    figure, axes = plt.subplots(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    for colour, (stage, values) in zip(COLOURS, stages.items(), strict=False):
        axes.plot(*zip(*values.items(), strict=True), marker="o", color=colour, label=stage)
    axes.set_xscale("log", base=2)
    ks = list(next(iter(stages.values())))
    axes.set_xticks(ks, map(str, ks))
    axes.set(xlabel="k samples of a question", ylabel="one of k is right", ylim=(0, 1))
    axes.set_title("Held-out puzzles after each stage", loc="left", fontsize=11)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    finish_plot(axes)
    figure.savefig(path)
    plt.close(figure)


def main(arguments: Sequence[str]) -> None:
    """Writes the table and the plot beside the first run."""
    if not arguments or arguments[0] in ("-h", "--help"):
        raise SystemExit(__doc__.strip())
    runs = [Path(each) for each in arguments]
    folder, stages = runs[0].parent, read_stages(runs)
    draw(stages, folder / "stages.png")
    picture = "![pass@k on held-out puzzles after each stage](stages.png)"
    (folder / "stages.md").write_text(f"{picture}\n\n{table(stages)}\n", encoding="utf-8")
    print(f"{table(stages)}\n\nwritten: {folder / 'stages.md'} and {folder / 'stages.png'}")


if __name__ == "__main__":
    main(sys.argv[1:])
