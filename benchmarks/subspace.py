"""Time, memory and error of the subspace pass against the algorithm as released.

    python benchmarks/subspace.py --tokens 4096 --hidden 2560 --groups 8 [--dtype bfloat16]
    python benchmarks/subspace.py [--groups 64] [--output benchmarks/results/subspace.md]

Without sizes it runs the table: 1 and `--groups` groups of each of three sizes. A group has one
right and one wrong response of `--tokens` tokens. Both sides get the same tensors [B, T, H] in the
same process with the same threads, and make the weights of all groups:

* ours: one call of `megatron_resrl.subspace.token_weights`.
* released: a Python loop over groups: layer norm, centring, `torch.pca_lowrank(q=64, niter=4)` with
  its own centring on, residual by subtraction of the projection, quantiles. Tokens of a group are
  handled together, which the released code does not do.

Reported:

* time per group: medians of interleaved runs (ours, released, ours, ...) after a warm-up of each;
  of the pass, and of the decomposition of the first window's groups alone (`basis_from_rows`
  against the loop of `pca_lowrank`).
* memory: what one pass adds to a fresh process. On a CPU peak resident memory minus what it held
  before (VmHWM after writing 5 to /proc/self/clear_refs, Linux with glibc only; a small pass first
  loads libraries); on CUDA `max_memory_allocated` minus what was allocated before.
* error against float64, of the first group: residuals (relative) and weights (absolute).
* repeatability: largest difference of single weights between two runs of the first group.

Groups are held and passed a few at a time where all would take more than 4 GB; times are then added
up, and memory is that of the first such part. The exact subspace comes from a float64 Gram matrix's
full eigen-decomposition, itself compared with a float64 SVD at a small size in every run.

The tokens have a slowly decaying spectrum without a gap and six outlier dimensions, as language
models have. The last line compares whole passes, ours over released: `error_ratio` is that of the
mean error of residuals; of several rows each ratio is the worst.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import command, describe

from megatron_resrl.subspace import basis_from_rows, layer_norm, residuals, token_weights

RANK, QUANTILES, FLOOR = 64, (0.2, 0.8), 0.1
SIZES = ((1024, 5120), (4096, 2560), (4096, 8192))
WINDOW_ROWS = 4096
"""Rows that our pass collects at a time: the default of `max_positive_tokens`."""
HELD_BYTES = 4e9
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Batch:
    """Groups side by side: response 2 g of group g is right, 2 g + 1 wrong."""

    hidden: Tensor
    """[2 G, T, H]."""
    positive: Tensor
    """[2 G] bool."""
    group: Tensor
    """[2 G] int64."""


@dataclass(frozen=True)
class Case:
    """Groups of one size, and where their hidden states are."""

    tokens: int
    hidden_size: int
    groups: int
    dtype: str
    device: str

    @property
    def window(self) -> int:
        """Groups that our pass decomposes together."""
        return max(1, WINDOW_ROWS // max(self.tokens, RANK))

    def batches(self) -> Iterator[Batch]:
        """All groups, as many at a time as may be held."""
        group_bytes = 2 * self.tokens * self.hidden_size * DTYPES[self.dtype].itemsize
        held = max(1, int(HELD_BYTES // group_bytes) // self.window) * self.window
        for first in range(0, self.groups, held):
            yield self.batch(range(first, min(first + held, self.groups)))

    def batch(self, seeds: range) -> Batch:
        """One group per seed."""
        shape = (2 * len(seeds), self.tokens, self.hidden_size)
        hidden = torch.empty(shape, dtype=DTYPES[self.dtype], device=self.device)
        for place, seed in enumerate(seeds):
            states = synthetic_states(2 * self.tokens, self.hidden_size, seed)
            hidden[2 * place : 2 * place + 2] = states.view(2, self.tokens, self.hidden_size)
        rows = torch.arange(2 * len(seeds), device=self.device)
        return Batch(hidden, rows % 2 == 0, rows // 2)

    def arguments(self) -> list[str]:
        """Of a fresh process that measures this case."""
        sizes = ["--tokens", self.tokens, "--hidden", self.hidden_size, "--groups", self.groups]
        return [str(word) for word in [*sizes, "--dtype", self.dtype, "--device", self.device]]


def synthetic_states(count: int, hidden_size: int, seed: int) -> Tensor:
    """[count, H] states; singular values fall as i^-0.55, six dimensions stand out.

    The directions are turned by signs and Hartley transforms, which are orthogonal and, unlike a
    product with a random matrix, take no time at large H.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, hidden_size + 1) ** -0.55 * 0.2 * hidden_size**0.5
    hidden = torch.randn(count, hidden_size, generator=generator).mul_(scale)
    for _ in range(2):
        signs = torch.randint(2, (hidden_size,), generator=generator) * 2 - 1
        for rows in hidden.split(512):
            spectrum = torch.fft.fft(rows * signs, norm="ortho")
            rows.copy_(spectrum.real - spectrum.imag)
    hidden[:, :6] = 8 * (hidden[:, :6] + 3 * torch.arange(1, 7))
    return hidden


def ours(batch: Batch) -> Tensor:
    """[B, T] weights."""
    tokens = batch.hidden.shape[1]
    return token_weights(
        batch.hidden,
        torch.ones(batch.hidden.shape[:2], dtype=torch.bool),
        batch.positive,
        batch.group,
        rank=RANK,
        max_positive_tokens=max(tokens, WINDOW_ROWS),
        quantiles=QUANTILES,
        floor=FLOOR,
    )


def released(batch: Batch) -> Tensor:
    """[B, T] weights."""
    weights = torch.ones(batch.hidden.shape[:2], device=batch.hidden.device)
    for number in batch.group.unique().tolist():
        inside = batch.group == number
        positives, negatives = (
            batch.hidden[inside & side].flatten(0, 1) for side in (batch.positive, ~batch.positive)
        )
        residual = released_residuals(positives, negatives)
        weights[inside & ~batch.positive] = weights_of(residual).view(-1, weights.shape[1])
    return weights


def released_residuals(positives: Tensor, negatives: Tensor) -> Tensor:
    """[n] of the negatives [n, H] of one group."""
    x = F.layer_norm(positives.float(), positives.shape[-1:])
    mean = x.mean(0)
    directions = released_directions(x - mean)
    y = F.layer_norm(negatives.float(), negatives.shape[-1:]) - mean
    return (y - (y @ directions) @ directions.T).square().sum(1) / y.shape[1]


def released_directions(centred: Tensor) -> Tensor:
    """[H, K] of the positives [n, H] of one group."""
    rank = min(RANK, len(centred) - 1, centred.shape[1])
    return torch.pca_lowrank(centred, q=rank, niter=4)[2]


def weights_of(residual: Tensor) -> Tensor:
    """Quantiles of the residuals to [floor, 1]."""
    low, high = torch.quantile(residual, residual.new_tensor(QUANTILES))
    return FLOOR + (1 - FLOOR) * ((residual - low) / (high - low)).clamp(0, 1)


def our_residuals(positives: Tensor, negatives: Tensor) -> Tensor:
    """[n] residuals of the product."""
    valid = torch.ones(1, len(positives), dtype=torch.bool, device=positives.device)
    basis = basis_from_rows(layer_norm(positives).unsqueeze(0), valid, RANK)
    return residuals(negatives, torch.zeros(len(negatives), dtype=torch.int64), basis)


def exact_residuals(positives: Tensor, negatives: Tensor, *, svd: bool = False) -> Tensor:
    """Float64 residuals of the negatives: by the smaller Gram matrix, or by an SVD."""
    x = layer_norm(positives.double())
    mean = x.mean(0)
    x -= mean
    rank = min(RANK, len(x) - 1, x.shape[1])
    if svd:
        directions = torch.linalg.svd(x, full_matrices=False)[2][:rank].T
    elif len(x) > x.shape[1]:
        directions = torch.linalg.eigh(x.T @ x)[1][:, -rank:]
    else:
        values, left = torch.linalg.eigh(x @ x.T)
        directions = x.T @ (left[:, -rank:] * values[-rank:].rsqrt())
    y = layer_norm(negatives.double()) - mean
    return (y - (y @ directions) @ directions.T).square().sum(1) / y.shape[1]


SIDES: dict[str, Callable[[Batch], Tensor]] = {"ours": ours, "released": released}


def interleaved(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, called in turn after a warm-up of each."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            wait()
            start = time.perf_counter()
            work()
            wait()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def wait() -> None:
    """Until the device has done what is queued."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def pass_seconds(case: Case, repeats: int) -> dict[str, float]:
    """Of all groups."""
    total = dict.fromkeys(SIDES, 0.0)
    for batch in case.batches():
        works = {name: lambda side=side, on=batch: side(on) for name, side in SIDES.items()}
        for name, seconds in interleaved(works, repeats).items():
            total[name] += seconds
        del batch, works  # or two parts would be held while the next one is made
    return total


def decomposition_seconds(case: Case, repeats: int) -> dict[str, float]:
    """Per group of the first window."""
    batch = case.batch(range(min(case.window, case.groups)))
    x_GNH = layer_norm(batch.hidden[batch.positive])
    x_GNH -= x_GNH.mean(1, keepdim=True)
    valid_GN = torch.ones(x_GNH.shape[:2], dtype=torch.bool, device=x_GNH.device)
    works = {
        "ours": lambda: basis_from_rows(x_GNH, valid_GN, RANK),
        "released": lambda: [released_directions(x_NH) for x_NH in x_GNH],
    }
    return {name: value / len(x_GNH) for name, value in interleaved(works, repeats).items()}


def accuracy(case: Case) -> dict[str, tuple[float, ...]]:
    """Residual error, mean and largest; weight error, mean and largest; change between runs."""
    batch = case.batch(range(1))
    positives, negatives = batch.hidden
    exact = exact_residuals(positives, negatives)
    residual_of = {"ours": our_residuals, "released": released_residuals}
    found = {}
    for name, side in SIDES.items():
        torch.manual_seed(0)
        weights = side(batch)[1]
        relative = (residual_of[name](positives, negatives).double() - exact).abs() / exact
        error = (weights.double() - weights_of(exact)).abs()
        torch.manual_seed(1)
        change = (side(batch)[1] - weights).abs().max()
        values = (relative.mean(), relative.max(), error.mean(), error.max(), change)
        found[name] = tuple(float(value) for value in values)
    return found


def reference_error() -> float:
    """Largest relative difference of exact residuals between Gram matrix and SVD, small sizes."""
    worst = 0.0
    for tokens, hidden_size in ((300, 384), (384, 300)):
        states = synthetic_states(2 * tokens, hidden_size, 0).split(tokens)
        exact = exact_residuals(*states, svd=True)
        worst = max(worst, float(((exact_residuals(*states) - exact).abs() / exact).max()))
    return worst


def peak_memory(case: Case, side: str) -> float:
    """MiB that one pass adds to a fresh process; median of three."""
    command = [sys.executable, __file__, "--measure-memory", side, *case.arguments()]
    command += ["--threads", str(torch.get_num_threads())]
    return statistics.median(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    )


def measure_memory(case: Case, side: str) -> float:
    """MiB that a pass takes beyond its hidden states, in this process."""
    run = SIDES[side]
    run(Case(300, 320, 1, case.dtype, case.device).batch(range(1)))
    batch = next(case.batches())
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(batch)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # Memory that is free but still resident would hide what the pass takes of it.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status_kib("VmRSS")
    run(batch)
    return (status_kib("VmHWM") - before) / 1024


def status_kib(field: str) -> int:
    """KiB of a field of /proc/self/status."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def measure(case: Case, repeats: int) -> tuple[list[str], tuple[float, float, float]]:
    """Two rows of the table, and the ratios of time, memory and error."""
    memory = {side: peak_memory(case, side) for side in SIDES}
    seconds = pass_seconds(case, repeats)
    decomposition = decomposition_seconds(case, repeats)
    error = accuracy(case)
    rows = []
    for side in SIDES:
        cells = [f"{case.tokens}, {case.hidden_size}", str(case.groups), side]
        cells += [f"{1e3 * seconds[side] / case.groups:.1f}", f"{1e3 * decomposition[side]:.1f}"]
        cells += [f"{memory[side]:.0f}", *(f"{value:.1e}" for value in error[side])]
        rows.append("| " + " | ".join(cells) + " |")
    pairs = [(table["ours"], table["released"]) for table in (seconds, memory)]
    pairs.append((error["ours"][0], error["released"][0]))
    return rows, tuple(mine / theirs for mine, theirs in pairs)


def report(cases: list[Case], repeats: int, where: str) -> str:
    """The page of results."""
    lines = [
        "# Subspace and token weights against the released algorithm",
        "",
        f"`{command()}`, {where}; made-up hidden states in {cases[0].dtype} on "
        f"{cases[0].device}; medians of {repeats} interleaved runs. Errors are against float64; "
        f"its Gram matrix and its SVD agree within {reference_error():.0e} (relative, small "
        "sizes). Between two runs: largest change of a weight.",
        "",
        "| N, H | groups | side | ms per group | decomposition ms | MiB | residual error, mean "
        "| max | weight error, mean | max | between two runs |",
        "|" + "---|" * 11,
    ]
    ratios = []
    for case in cases:
        rows, found = measure(case, repeats)
        lines += rows
        ratios.append(found)
    names = ("time_ratio", "memory_ratio", "error_ratio")
    formats = (".2f", ".2f", ".1e")
    worst = [max(column) for column in zip(*ratios, strict=True)]
    parts = [f"{n}={v:{f}}" for n, v, f in zip(names, worst, formats, strict=True)]
    return "\n".join([*lines, "", " ".join(parts)]) + "\n"


def main() -> None:
    """Measures one case in this process, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, help="positive, and negative, tokens per group")
    parser.add_argument("--hidden", type=int, help="hidden size")
    parser.add_argument("--groups", type=int, help="groups; default 1, of the table 64")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    parser.add_argument("--measure-memory", choices=SIDES, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if (settings.tokens is None) != (settings.hidden is None):
        parser.error("--tokens and --hidden go together")
    torch.set_num_threads(settings.threads)
    kind = settings.dtype, settings.device
    if settings.tokens:
        cases = [Case(settings.tokens, settings.hidden, settings.groups or 1, *kind)]
    else:
        counts = sorted({1, settings.groups or 64})
        cases = [Case(*size, count, *kind) for size in SIZES for count in counts]
    if settings.measure_memory:
        print(measure_memory(cases[0], settings.measure_memory))
        return
    text = report(cases, settings.repeats, describe(("torch",), settings.threads))
    print(text, end="")
    if settings.output:
        settings.output.write_text(text)


if __name__ == "__main__":
    main()
