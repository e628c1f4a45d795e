"""Predicts the subspace pass on H100 clusters and its share of published step times.

    python benchmarks/subspace_at_scale.py [--output benchmarks/results/subspace_at_scale.md]

Nothing is run: `megatron_resrl.subspace.cost` is asked with rates of an H100 that are estimated
from data sheets, and step times are derived from published ones. Needs no GPU.

Step times come from NVIDIA's "Reinforcement Learning with NVIDIA NeMo-RL: Megatron-Core Support
for Optimized Training Throughput" (developer.nvidia.com/blog, 2025): GRPO, 2048 responses per step,
mean of steps 22 to 29. Other workloads are derived from them: all but the refit grows with the
response tokens (prompts are left out), all of it with the model's parameters, and on more GPUs all
but the refit shrinks with their number. Ideal scaling makes steps too short and shares too large.

Assumed of every workload: each group is half right, so that no group is skipped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_resrl.subspace.cost import METHODS, Cost, PassShape, choose_method
from megatron_resrl.subspace.plan import MIN_WINDOW_ROWS
from megatron_resrl.subspace.rates import H100_CLUSTER, H100_NODE, MachineRates

MAX_POSITIVE_TOKENS, RANK, ITEMSIZE = 4096, 64, 2
LIMIT = 0.01
H100_BYTES = 80e9
# B300, L40S and consumer GPUs give up float64: 1.2 to 1.4e12 operations per second by their data
# sheets.
WEAK_FLOAT64 = replace(H100_NODE, float64_flops=1.2e12)


@dataclass(frozen=True)
class PublishedRun:
    """A step time to derive others from."""

    seconds: float
    """Of the whole step."""
    refit: float
    """Seconds of it for moving the weights to the engine."""
    gpus: int
    parameters: float
    """Of the model, in units of 10^9."""
    tokens: int
    """Response tokens per step."""

    def step_seconds(self, parameters: float, tokens: int, gpus: int) -> float:
        """Derived step time of another model, workload and number of GPUs."""
        variable = (self.seconds - self.refit) * tokens / self.tokens * self.gpus / gpus
        return (self.refit + variable) * parameters / self.parameters


# 28 s training, 5 refit, 58 generation, 18 log-probs; 795 tokens per response; data-parallel.
LLAMA_8B = PublishedRun(112, 5, 8, 8.03, 2048 * 795)
# 28 s training, 14 refit, 84 generation, 18 log-probs; 398 tokens per response; TP4 x PP4.
LLAMA_70B = PublishedRun(147, 14, 64, 70.6, 2048 * 398)


@dataclass(frozen=True)
class Model:
    name: str
    parameters: float
    hidden_size: int
    run: PublishedRun


QWEN_4B = Model("Qwen3-4B", 4.02, 2560, LLAMA_8B)
LLAMA = Model("Llama-3.1-70B", 70.6, 8192, LLAMA_70B)
SMOLLM = Model("SmolLM2-135M", 0.135, 576, LLAMA_8B)


@dataclass(frozen=True)
class Layout:
    """Ranks of one model stage, and how many replicas of it share the groups.

    Tensor-parallel ranks count with sequence parallelism and without: they divide what they hold
    copies of.
    """

    name: str
    gpus: int
    replicas: int
    ranks: int = 1
    rates: MachineRates = H100_NODE


DP8 = Layout("DP8", 8, 8)
TP8 = Layout("TP8 SP", 8, 1, ranks=8)
LARGE_64 = Layout("TP8 SP, PP2, DP4", 64, 4, ranks=8)
LARGE_512 = Layout("TP8 SP, PP2, DP32", 512, 32, ranks=8)


@dataclass(frozen=True)
class Workload:
    name: str
    prompts: int
    group_size: int
    response_tokens: int
    """Mean per response."""


PAPER = Workload("paper", 256, 4, 2048)
G16 = Workload("G = 16", 256, 16, 2048)
G64 = Workload("G = 64", 256, 64, 2048)
SHORT = Workload("short answers", 256, 4, 128)
TINY = Workload("very short answers", 1024, 8, 32)


@dataclass(frozen=True)
class Case:
    model: Model
    layout: Layout
    workload: Workload
    rows_per_rank: int | None = None
    reason: str = ""

    def shape(self) -> PassShape:
        """Sizes of the pass on one replica."""
        tokens = self.workload.group_size * self.workload.response_tokens // 2
        sampled = min(tokens, MAX_POSITIVE_TOKENS)
        rows = self.rows_per_rank or max(sampled, MIN_WINDOW_ROWS)
        return PassShape(
            groups=-(-self.workload.prompts // self.layout.replicas),
            positive_tokens=sampled,
            negative_tokens=tokens,
            hidden_size=self.model.hidden_size,
            rank=RANK,
            itemsize=ITEMSIZE,
            ranks=self.layout.ranks,
            window_rows=rows * self.layout.ranks,
        )

    def step_seconds(self) -> float:
        """Derived step time."""
        workload = self.workload
        tokens = workload.prompts * workload.group_size * workload.response_tokens
        return self.model.run.step_seconds(self.model.parameters, tokens, self.layout.gpus)


@dataclass(frozen=True)
class Prediction:
    case: Case
    method: str
    chosen: bool
    cost: Cost

    @property
    def share(self) -> float:
        """Of the step's time."""
        return self.cost.seconds / self.case.step_seconds()

    def row(self) -> str:
        """One row of a table."""
        case, cost, shape = self.case, self.cost, self.case.shape()
        cells = (
            case.model.name,
            case.layout.gpus,
            case.layout.name,
            case.reason or case.workload.name,
            f"{shape.groups} x {shape.positive_tokens} + {shape.negative_tokens}",
            f"**{self.method}**" if self.chosen else self.method,
            f"{cost.flops / 1e12:.2f} + {cost.float64_flops / 1e12:.2f}",
            f"{cost.bytes_sent / 1e6:.0f}",
            _bold_from(H100_BYTES, cost.peak_bytes, f"{cost.peak_bytes / 1e9:.2f}"),
            f"{cost.eigen_seconds * 1e3:.0f}",
            f"{(cost.compute_seconds - cost.eigen_seconds) * 1e3:.0f}",
            f"{cost.communication_seconds * 1e3:.0f}",
            f"{case.step_seconds():.1f}",
            _bold_from(LIMIT, self.share, f"{self.share:.2%}"),
        )
        return "| " + " | ".join(map(str, cells)) + " |"


def common_cases() -> Iterator[Case]:
    """What the recipes are made for, and the published runs themselves."""
    nemo = Workload("published run", 64, 32, 398)
    for layout in (DP8, TP8):
        for workload in (PAPER, G16, G64, replace(nemo, response_tokens=795)):
            yield Case(QWEN_4B, layout, workload)
    for layout in (LARGE_64, LARGE_512):
        for workload in (PAPER, G16, G64, nemo):
            yield Case(LLAMA, layout, workload)


def hard_cases() -> Iterator[Case]:
    """Where the pass is dear compared with the rest of the step."""
    yield Case(QWEN_4B, DP8, SHORT, reason="answers of 128 tokens")
    yield Case(SMOLLM, DP8, TINY, reason="small model, 1024 prompts, G = 8, 32 tokens")
    one = MAX_POSITIVE_TOKENS // LARGE_64.ranks
    yield Case(LLAMA, LARGE_64, PAPER, one, reason="one group at a time")
    for replicas in (4, 32):
        split = Layout(
            f"TP8 SP, PP2, DP{replicas}, groups split",
            gpus=16 * replicas,
            replicas=1,
            ranks=8 * replicas,
            rates=H100_CLUSTER,
        )
        yield Case(LLAMA, split, PAPER, reason="groups split between nodes")
    for model, layout in ((QWEN_4B, DP8), (LLAMA, LARGE_64)):
        weak = replace(layout, rates=WEAK_FLOAT64)
        yield Case(model, weak, PAPER, reason="GPU with weak float64")


def _bold_from(limit: float, value: float, text: str) -> str:
    return text if value < limit else f"**{text}**"


def predict(cases: Iterable[Case]) -> list[Prediction]:
    """Both methods of every case."""
    predictions = []
    for case in cases:
        chosen, costs = choose_method(case.shape(), case.layout.rates)
        predictions += [Prediction(case, name, name == chosen, costs[name]) for name in METHODS]
    return predictions


def table(predictions: Iterable[Prediction]) -> list[str]:
    header = (
        "model | GPUs | layout | workload | groups x N + Q | method | TFLOP 32 + 64 | MB sent | "
        "peak GB | eigen ms | other compute ms | communication ms | step s | share"
    )
    return [f"| {header} |", "|" + "---|" * 14, *(prediction.row() for prediction in predictions)]


def verdict(predictions: list[Prediction]) -> list[str]:
    """Where the chosen method, and the other one, stay below the limit."""
    lines = []
    for text, wanted in (("With the method that `auto` picks", True), ("With the other", False)):
        some = [prediction for prediction in predictions if prediction.chosen is wanted]
        over = [prediction for prediction in some if prediction.share >= LIMIT]
        below = f"- {text}: below {LIMIT:.0%} of the step in {len(some) - len(over)} of {len(some)}"
        names = (f"{p.case.model.name}, {p.case.reason}, {p.share:.1%}" for p in over)
        lines.append(below + (f"; above it: {'; '.join(names)}." if over else "."))
    return lines


def report() -> str:
    """Two tables and the summary line."""
    common, hard = predict(common_cases()), predict(hard_cases())
    chosen = [max(p.share for p in part if p.chosen) for part in (common, hard)]
    below = sum(p.share < LIMIT for p in common + hard if p.chosen)
    return "\n".join(
        [
            "# The subspace pass at scale: predicted, never run on a GPU",
            "",
            "`python benchmarks/subspace_at_scale.py`. Rates of an H100, estimated from its data "
            "sheet: 45 TFLOP/s float32, 50 float64, 2.7 TB/s memory, 350 GB/s between the ranks "
            "of a node and 40 GB/s between nodes; 47 µs per column of an eigen-decomposition, "
            "measured on a CPU core at 352 columns.",
            "",
            "Step times derive from two published GRPO runs of 2048 responses on H100 (NeMo-RL, "
            "Megatron): Llama-3.1-8B on 8 GPUs, 795 tokens per response, 112 s; Llama-3.1-70B on "
            "64, 398 tokens, 147 s. All but the refit (5 and 14 s) is scaled by response tokens "
            "and inversely by GPUs, everything by parameters; no overhead is added, so that short "
            "steps come out too short and their shares too large. `published run` is that workload "
            "itself, taken as 64 prompts x 32 responses; Qwen3-4B's time is half of "
            "Llama-3.1-8B's. `paper` is 256 prompts x 4 responses of 2048 tokens on average (at "
            "most 4096). Half of each group is right.",
            "",
            "Sizes are those of one replica: groups x N sampled positive + Q negative tokens. "
            "Operations, bytes and memory are of the busiest rank and the whole step, in windows "
            f"of one group's rows per rank, at least {MIN_WINDOW_ROWS} (`gram`: at most one group "
            "per rank). Bold: "
            f"the method that `auto` picks, shares of {LIMIT:.0%} or more, and memory that no "
            "H100 has. `eigen` is the time of the small eigen-decompositions, one after the other. "
            "Tensor-parallel ranks without sequence parallelism divide their copies of the tokens, "
            "so that the same numbers hold.",
            "",
            "## Recipes",
            "",
            *table(common),
            "",
            *verdict(common),
            "",
            "## Looking for trouble",
            "",
            *table(hard),
            "",
            *verdict(hard),
            "",
            f"largest_share_recipes={chosen[0]:.5f} largest_share_hard={chosen[1]:.5f} "
            f"below_{LIMIT:.0%}={below}/{len(common + hard) // 2}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    settings = parser.parse_args()
    text = report()
    print(text)
    if settings.output:
        settings.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
