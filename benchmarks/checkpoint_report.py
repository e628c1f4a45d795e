"""The page of results of `checkpoint.py`."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import NamedTuple

from machine import command


class Cost(NamedTuple):
    """What something takes."""

    seconds: float
    cpu: float
    """CPU seconds of all threads, and of child processes that have ended."""
    memory: float
    """Bytes at the peak of the resident set above those before."""


def median(costs: list[Cost]) -> Cost:
    """Medians, and the most memory: what the first call takes, the next may use again."""
    seconds, cpu, memory = zip(*costs, strict=True)
    return Cost(statistics.median(seconds), statistics.median(cpu), max(memory))


@dataclass
class Saving:
    """The repeats of each way to save."""

    costs: dict[str, list[Cost]] = field(default_factory=dict)
    """By name; `step` is a step without a save, `background` what a save beside steps takes from
    them, `held up` the part of it before the steps go on."""
    steps: list[int] = field(default_factory=list)
    """Taken while files were written in the background."""
    written: list[float] = field(default_factory=list)
    """Seconds from then on until the checkpoint was published."""

    def note(self, name: str, cost: Cost) -> Cost:
        """Keeps a repeat."""
        self.costs.setdefault(name, []).append(cost)
        return cost


def report(
    saving: Saving,
    loading: dict[str, float],
    resuming: dict[str, float],
    size: int,
    written: int,
    where: str,
    model: str,
) -> str:
    """The page of results.

    Args:
        saving: All repeats.
        loading: Seconds of each way to read.
        resuming: Seconds of each part.
        size: Bytes of the state.
        written: Bytes of the checkpoint's files.
        where: The machine.
        model: In words.
    """
    costs = {name: median(found) for name, found in saving.costs.items()}
    waiting, background, held, step = (
        costs[name] for name in ("waiting", "background", "held up", "step")
    )

    def row(what: str, cost: Cost) -> str:
        return (
            f"| {what} | {cost.seconds:.2f} | {size / cost.seconds / 1e9:.2f} | {cost.cpu:.2f} | "
            f"{cost.memory / size:.2f} |"
        )

    def read_row(what: str, seconds: float) -> str:
        return f"| {what} | {seconds:.2f} | {size / seconds / 1e9:.2f} | | |"

    return "\n".join(
        [
            "# Saving and loading a checkpoint",
            "",
            f"`{command()}`, {where}. {model}, fp32, one rank: {size / 1e9:.2f} GB of weights, "
            f"masters and moments, in files of {written / 1e9:.2f} GB (fp32 weights are their own "
            f"masters). Medians of {len(saving.written)}, taken in turn.",
            "",
            "| | s | GB/s | CPU s | extra memory / state |",
            "|---|---|---|---|---|",
            row("save, training waits (checksums and fsync included)", waiting),
            row("peer: torch.save into one file, fsync", costs["torch.save"]),
            row("peer: megatron-core's save, `fully_reshardable`", costs["fully_reshardable"]),
            row("peer: megatron-core's save, `dp_reshardable`", costs["dp_reshardable"]),
            read_row("compare with the checksums", loading["verify"]),
            read_row("load", loading["load"]),
            "",
            "| save in the background | |",
            "|---|---|",
            f"| stolen from training, s | {background.seconds:.2f} |",
            f"| ... held up for copies, s | {held.seconds:.2f} |",
            f"| ... lost by {statistics.median(saving.steps):.0f} steps of {step.seconds:.2f} s "
            "meanwhile, s | "
            f"{background.seconds - held.seconds:.2f} |",
            "| lost by steps beside a thread that writes as many bytes, and nothing else, s | "
            f"{costs['bytes'].seconds:.2f} |",
            f"| CPU seconds beside those of the steps | {background.cpu:.2f} |",
            f"| until it is published, s | {statistics.median(saving.written):.2f} |",
            f"| extra memory / state | {background.memory / size:.2f} |",
            "",
            "| resuming, from the start of the process | s |",
            "|---|---|",
            *(f"| {name} | {seconds:.2f} |" for name, seconds in resuming.items()),
            "",
            f"stolen_s={background.seconds:.2f} "
            f"extra_memory={background.memory / size:.2f} "
            f"save_over_torch_save={waiting.seconds / costs['torch.save'].seconds:.2f} "
            "save_over_megatron_core="
            f"{waiting.seconds / costs['fully_reshardable'].seconds:.2f} "
            "save_over_megatron_core_dp_reshardable="
            f"{waiting.seconds / costs['dp_reshardable'].seconds:.2f}",
        ]
    )
