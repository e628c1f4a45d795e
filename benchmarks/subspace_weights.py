"""Time, memory and error of the subspace pass against the algorithm as published.

    python benchmarks/subspace_weights.py [--output benchmarks/results/subspace_weights.md]

One prompt group of N positive and N negative tokens with hidden size H, from hidden states to
token weights. `published` is the method's description written down with `torch.pca_lowrank(q=64,
niter=4)`, vectorised over tokens. Both get the same tensors, threads and process. Reported:

* time: median over interleaved runs (ours, published, ours, ...): a noisy machine hits both.
  `cpu_time_ratio` is of processor time, which other programs disturb least at one thread;
  `svd_time_ratio` is that of the truncated SVD alone, without layer norm and scoring.
* memory: peak resident memory of a fresh process during one pass, minus what it held before
  (VmHWM after writing 5 to /proc/self/clear_refs, Linux only). A small pass first loads libraries.
* error: of residuals (relative) and weights (absolute) against a full float64 SVD.

The tokens have a slowly decaying spectrum and a few outlier dimensions, as language models have.
A last part times many small groups, as the quickstart has them.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_resrl.subspace import (
    basis_from_rows,
    group_token_weights,
    normalised_rows,
    residuals,
)

RANK, QUANTILES, FLOOR = 64, (0.2, 0.8), 0.1
SIZES = ((1024, 576), (4096, 2560))
SMALL_GROUPS, SMALL_TOKENS, SMALL_HIDDEN = 64, 40, 576


def tokens(count: int, hidden_size: int, seed: int = 0) -> Tensor:
    """[count, hidden_size] states; singular values fall as i^-0.55, six dimensions stand out."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(hidden_size, hidden_size, generator=generator)).Q
    scale = torch.arange(1, hidden_size + 1) ** -0.55 * 0.2 * hidden_size**0.5
    hidden = torch.randn(count, hidden_size, generator=generator) * scale @ turn
    hidden[:, :6] = 8 * (hidden[:, :6] + 3 * torch.arange(1, 7))
    return hidden


def group(positives: int, hidden_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, token indices and signs of a group with as many negatives as positives."""
    hidden = tokens(2 * positives, hidden_size)
    return hidden, torch.arange(len(hidden)), torch.arange(len(hidden)) < positives


def weights_of(residual: Tensor) -> Tensor:
    low, high = torch.quantile(residual, residual.new_tensor(QUANTILES))
    return FLOOR + (1 - FLOOR) * ((residual - low) / (high - low)).clamp(0, 1)


def published_basis(centred: Tensor) -> Tensor:
    rank = min(RANK, len(centred) - 1, centred.shape[1])
    return torch.pca_lowrank(centred, q=rank, center=False, niter=4)[2]


def published(hidden: Tensor, index: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [N] and residuals of negatives, by the published description."""
    x = F.layer_norm(hidden.float(), hidden.shape[-1:])
    positives = x[positive]
    mean = positives.mean(0)
    basis = published_basis(positives - mean)
    y = x[~positive] - mean
    residual = (y - (y @ basis) @ basis.T).square().sum(1) / x.shape[1]
    weights = torch.ones(len(x))
    weights[~positive] = weights_of(residual)
    return weights, residual


def ours(hidden: Tensor, index: Tensor, positive: Tensor) -> Tensor:
    return group_token_weights(hidden, index, positive, rank=RANK)[0]


def our_residuals(hidden: Tensor, positive: Tensor) -> Tensor:
    rows, negatives = positive.nonzero().flatten(), (~positive).nonzero().flatten()
    return residuals(hidden, negatives, basis_from_rows(normalised_rows(hidden, rows), RANK))


def exact_residuals(hidden: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 residuals of negatives, and singular values of the centred positives."""
    x = F.layer_norm(hidden.double(), hidden.shape[-1:])
    mean = x[positive].mean(0)
    _, singular, directions = torch.linalg.svd(x[positive] - mean, full_matrices=False)
    basis = directions[:RANK].T
    y = x[~positive] - mean
    return (y - (y @ basis) @ basis.T).square().sum(1) / x.shape[1], singular


@dataclass(frozen=True)
class Seconds:
    """Median seconds of one call."""

    wall: float
    cpu: float


def interleaved(first, second, repeats: int) -> dict[str, Seconds]:
    """Median times of our and the published function called in turn, after a warm-up of each."""
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "published": []}
    for _ in range(repeats + 1):
        for function, record in zip((first, second), times.values(), strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            record.append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: Seconds(*(statistics.median(column) for column in zip(*record[1:], strict=True)))
        for name, record in times.items()
    }


def status_kib(field: str) -> int:
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def peak_memory(method: str, positives: int, hidden_size: int) -> float:
    """MiB that one pass adds to the resident memory of a fresh process; median of three."""
    command = [sys.executable, __file__, "--measure-memory", method]
    command += ["--positives", str(positives), "--hidden", str(hidden_size)]
    command += ["--threads", str(torch.get_num_threads())]
    return statistics.median(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    )


def measure_memory(method: str, positives: int, hidden_size: int) -> None:
    run = {"ours": ours, "published": published}[method]
    run(*group(300, 320))
    tensors = group(positives, hidden_size)
    Path("/proc/self/clear_refs").write_text("5")
    before = status_kib("VmRSS")
    run(*tensors)
    print((status_kib("VmHWM") - before) / 1024)


def errors(residual: Tensor, weights: Tensor, exact: Tensor) -> tuple[float, float, float, float]:
    relative = (residual.double() - exact).abs() / exact
    difference = (weights.double() - weights_of(exact)).abs()
    return tuple(float(v) for v in (relative.mean(), relative.max(), *moments(difference)))


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(), values.max()


def accuracy(tensors: tuple[Tensor, Tensor, Tensor]) -> tuple[str, dict[str, tuple[float, ...]]]:
    """A sentence on the spectrum and repeatability, and the errors of both methods."""
    hidden, _, positive = tensors
    exact, singular = exact_residuals(hidden, positive)
    torch.manual_seed(0)
    their_weights, their_residual = published(*tensors)
    torch.manual_seed(1)
    their_change = (published(*tensors)[0] - their_weights).abs().max()
    our_weights = ours(*tensors)
    our_change = (ours(*tensors) - our_weights).abs().max()
    note = (
        f"N={int(positive.sum())} H={hidden.shape[1]}: sigma_1/sigma_64 "
        f"{singular[0] / singular[63]:.1f}, gap after 64 {1 - singular[64] / singular[63]:.1%}; "
        f"two runs differ in single weights by up to {their_change:.2f} (published), "
        f"{our_change:.0f} (ours)"
    )
    return note, {
        "published": errors(their_residual, their_weights[~positive], exact),
        "ours": errors(our_residuals(hidden, positive), our_weights[~positive], exact),
    }


def speed(
    tensors: tuple[Tensor, Tensor, Tensor], repeats: int
) -> tuple[dict[str, Seconds], dict[str, Seconds]]:
    """Times of the whole pass and of its truncated SVD alone, by method."""
    hidden, _, positive = tensors
    centred = F.layer_norm(hidden[positive], hidden.shape[-1:])
    centred -= centred.mean(0)
    return (
        interleaved(lambda: ours(*tensors), lambda: published(*tensors), repeats),
        interleaved(
            lambda: basis_from_rows(centred, RANK), lambda: published_basis(centred), repeats
        ),
    )


def large_groups(repeats: int, threads: list[int]) -> tuple[list[str], list[str]]:
    """Table rows and ratio lines of every size and thread count."""
    table, ratios = [], []
    for size in SIZES:
        tensors = group(*size)
        note, error = accuracy(tensors)
        ratios.append(note)
        for count in threads:
            torch.set_num_threads(count)
            seconds, svd = speed(tensors, repeats)
            memory = {name: peak_memory(name, *size) for name in error}
            for name in ("published", "ours"):
                cells = [f"{size[0]}, {size[1]}", str(count), name]
                cells += [f"{1000 * seconds[name].wall:.0f}", f"{memory[name]:.0f}"]
                table.append("| " + " | ".join(cells + [f"{v:.1e}" for v in error[name]]) + " |")
            (_, residual, _, weight), (_, their_residual, _, their_weight) = (
                error["ours"],
                error["published"],
            )
            ratios.append(
                f"N={size[0]} H={size[1]} threads={count} "
                f"time_ratio={seconds['ours'].wall / seconds['published'].wall:.2f} "
                f"cpu_time_ratio={seconds['ours'].cpu / seconds['published'].cpu:.2f} "
                f"svd_time_ratio={svd['ours'].wall / svd['published'].wall:.2f} "
                f"memory_ratio={memory['ours'] / memory['published']:.2f} "
                f"residual_error_ratio={residual / their_residual:.1e} "
                f"weight_error_ratio={weight / their_weight:.1e}"
            )
    return table, ratios


def small_groups(repeats: int, threads: list[int]) -> list[str]:
    groups = [group(SMALL_TOKENS // 2, SMALL_HIDDEN) for _ in range(SMALL_GROUPS)]
    lines = []
    for count in threads:
        torch.set_num_threads(count)
        seconds = interleaved(
            lambda: [ours(*tensors) for tensors in groups],
            lambda: [published(*tensors) for tensors in groups],
            repeats,
        )
        mine, theirs = seconds["ours"], seconds["published"]
        lines.append(
            f"{SMALL_GROUPS} groups of {SMALL_TOKENS} tokens, H={SMALL_HIDDEN}, threads={count}: "
            f"ours_ms={1000 * mine.wall:.0f} published_ms={1000 * theirs.wall:.0f} "
            f"ours_ms_per_group={1000 * mine.wall / SMALL_GROUPS:.2f} "
            f"time_ratio={mine.wall / theirs.wall:.2f} cpu_time_ratio={mine.cpu / theirs.cpu:.2f}"
        )
    return lines


def machine() -> str:
    model = re.search(r"model name\s+: (.*)", Path("/proc/cpuinfo").read_text())
    return (
        f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {torch.__version__}, load average before "
        f"{os.getloadavg()[0]:.1f}"
    )


def report(repeats: int) -> str:
    where = machine()
    threads = sorted({1, torch.get_num_threads()})
    table, ratios = large_groups(repeats, threads)
    lines = [
        "# Subspace and token weights against the published algorithm",
        "",
        f"`python benchmarks/subspace_weights.py`, {where}; medians of {repeats} interleaved runs.",
        "Errors are against a full float64 SVD of the same float32 hidden states.",
        "",
        "| N, H | threads | method | ms | peak MiB | residual error, mean | max "
        "| weight error, mean | max |",
        "|---|---|---|---|---|---|---|---|---|",
        *table,
        "",
        *(f"    {line}" for line in ratios + small_groups(repeats, threads)),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--measure-memory", choices=("ours", "published"), help=argparse.SUPPRESS)
    parser.add_argument("--positives", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--hidden", type=int, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    if settings.measure_memory:
        measure_memory(settings.measure_memory, settings.positives, settings.hidden)
        return
    text = report(settings.repeats)
    print(text, end="")
    if settings.output:
        settings.output.write_text(text)


if __name__ == "__main__":
    main()
