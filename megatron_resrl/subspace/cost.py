"""What the subspace pass costs, by the form in which a group's positives are kept and exchanged.

A pass takes the prompt groups of one replica of a model stage, `window` groups at a time, in one
of two forms:

* `rows`: the sampled hidden states of a group are sent to the rank that owns the group, which
  forms the basis from products X^T (X Q) in float32;
* `gram`: every rank adds up a float64 scatter matrix per group; the owner sums the ranks' matrices
  in rank order and forms the basis from products with the sum.

Both end alike: bases go back to all ranks, every rank scores its negative tokens in float64, and
the residuals are added over the ranks that hold different tokens.

The numbers are main terms, for the busiest rank and the whole pass. A part takes as long as its
arithmetic or its memory traffic, whichever is longer; parts do not overlap.

Letters in formulas: G groups, W window, N positive and Q negative tokens per group, H hidden size,
K rank, M columns of the block Krylov space, R ranks that hold different tokens, C copies of each,
B blocks of that space (M / 16), D = ceil(W / (R C)) groups of one window solved by the same rank,
T elements of the upper triangle in panels (about H (H + 256) / 2), b bytes of a hidden value.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.distributed as dist

Method = Literal["rows", "gram"]
METHODS: tuple[Method, ...] = ("rows", "gram")

# Columns of the panels in which the upper triangle of a scatter matrix is made and sent.
PANEL = 256
# Rows that are multiplied into a scatter matrix at a time.
ROWS = 512
# Columns the Krylov space grows by.
BLOCK = 16
# Bytes that pass through memory per element of a positive token beside reading the hidden state:
# float32 layer norm and centring.
NORM_BYTES = 16
# The same per element of a negative token: float32 layer norm, float64 copy, centring, product,
# squares and their sum.
SCORE_BYTES = 64
# A float64 eigen-decomposition of n columns takes the time of about 25 n^3 float32 operations on a
# CPU (see basis.py). On a GPU the dependence of its columns on each other lasts longer.
EIGEN_FLOPS = 25
# Columns of the square product, and float32 values copied, to measure a GPU and a CPU.
MEASURED_CUDA = (4096, 1 << 25)
MEASURED_CPU = (256, 1 << 22)


@dataclass(frozen=True)
class PassShape:
    """Sizes of one pass over the groups of one replica; the same numbers on all its ranks."""

    groups: int
    """Prompt groups with right and wrong answers."""
    positive_tokens: int
    """Positive tokens sampled per group (N)."""
    negative_tokens: int
    """Negative tokens per group (Q)."""
    hidden_size: int
    """Hidden size of the model (H)."""
    rank: int
    """Directions kept (K)."""
    itemsize: int
    """Bytes of one hidden value (b): 2 for bf16, 4 for fp32."""
    ranks: int
    """Ranks that hold different tokens of a group (R): TP ranks under sequence parallelism x CP
    ranks, x DP ranks if groups are split."""
    window: int
    """Groups kept at once (W)."""
    copies: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "negative_tokens" else 1
            if value < least:
                raise ValueError(f"{field.name} is {value}, expected at least {least}")


@dataclass(frozen=True)
class MachineRates:
    """What one rank can do, as far as it matters to the pass."""

    float32_flops: float
    """Float32 matrix product, operations per second."""
    float64_flops: float
    """Float64 matrix product, operations per second."""
    memory_bandwidth: float
    """Bytes per second read plus written."""
    link_bandwidth: float
    """Bytes per second that a rank sends while all ranks do."""
    latency: float
    """Seconds of a collective that carries next to nothing."""
    column_latency: float
    """Seconds per column of a small float64 eigen-decomposition, whose columns wait for each
    other."""


@dataclass(frozen=True)
class Cost:
    """Prediction for the busiest rank, over the whole pass."""

    flops: int
    """Float32 operations."""
    float64_flops: int
    """Float64 operations."""
    memory_bytes: int
    """Bytes read from and written to memory."""
    exchange_bytes: int
    """Bytes sent of rows or of scatter matrices."""
    basis_bytes: int
    """Bytes sent to give the bases back."""
    residual_bytes: int
    """Bytes sent to add up the residuals."""
    peak_bytes: int
    """Largest memory of the pass beside the hidden states of the current micro-batch."""
    eigen_seconds: float
    """Predicted time of the small eigen-decompositions, one after the other."""
    compute_seconds: float
    """Predicted time of arithmetic and memory traffic, with the eigen-decompositions."""
    communication_seconds: float
    """Predicted time of the collectives."""

    @property
    def bytes_sent(self) -> int:
        """All bytes that the rank sends."""
        return self.exchange_bytes + self.basis_bytes + self.residual_bytes

    @property
    def seconds(self) -> float:
        """Predicted time of the pass."""
        return self.compute_seconds + self.communication_seconds


# One H100 SXM among 8 of a node. Estimated, not run:
# float32_flops: two thirds of the data sheet's 67e12 without tensor cores.
# float64_flops: three quarters of the data sheet's 67e12 with tensor cores.
# memory_bandwidth: four fifths of the data sheet's 3.35e12.
# link_bandwidth: what NCCL is known to reach of NVLink's 450e9 in one direction.
# latency: a small NCCL collective over NVLink.
# column_latency: 288 columns by LAPACK on one CPU core (9.7 ms measured); a GPU's solver is
#   assumed to be no slower.
H100_NODE = MachineRates(45e12, 50e12, 2.7e12, 350e9, 20e-6, 34e-6)
# The same with ranks on different nodes: a 400 Gbit/s adapter per GPU (50e9) at four fifths, and
# the latency of a small collective over InfiniBand. Estimated, not run.
H100_CLUSTER = MachineRates(45e12, 50e12, 2.7e12, 40e9, 40e-6, 34e-6)


def krylov_columns(shape: PassShape) -> int:
    """Columns of the search space: max(4 K, 128) + 32, at most min(N, H) (M)."""
    wanted = -(-max(4 * shape.rank, 128) // BLOCK) * BLOCK + 2 * BLOCK
    return min(wanted, shape.positive_tokens, shape.hidden_size)


def cost_of(method: Method, shape: PassShape, rates: MachineRates) -> Cost:
    """Predicts one pass.

    With S = D summed over the windows (groups solved one after the other):

    * rows: float32 S (4 N H M + 4 H M^2); memory traffic S N H (b + 16 + 8 B);
      exchange G N/R H b (R - 1)/R / C;
      peak W N/R H b + D N H (b + 4) + 8 D H M.
    * gram: float64 2 G N/R T + S (2 H^2 M + 4 H M^2);
      memory traffic 16 T per 512 rows and 8 B H^2 per solved group;
      exchange 8 G T (R - 1)/R / C, or 8 G T (R - 1) where a window is one group;
      peak 8 (W + D) H^2 + 8 R D 256 H + 16 D H M.
    * both: an eigen-decomposition of M columns per solved group; bases 8 S H (K + 1) (R C - 1)
      bytes sent, 8 W H (K + 1) bytes kept; scoring 2 G Q/R H K float64 and Q/R H (b + 64) bytes of
      memory traffic per group; residuals 16 G (N + Q) (R - 1)/R bytes sent (a ring all-reduce).

    Copies share the sending, but each adds up its own matrices and scores its own tokens. N/R and
    Q/R are rounded up.

    Args:
        method: `rows` or `gram`.
        shape: Sizes of the pass.
        rates: Of one rank.

    Returns:
        The prediction.

    Raises:
        ValueError: The method is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    parts = [*(_rows_parts if method == "rows" else _gram_parts)(shape), _scoring(shape)]
    columns, solved = krylov_columns(shape), _solved_in_turn(shape)
    eigen = solved * max(
        EIGEN_FLOPS * columns**3 / rates.float32_flops, columns * rates.column_latency
    )
    exchange, collectives = (_rows_exchange if method == "rows" else _gram_exchange)(shape)
    everyone = shape.ranks * shape.copies
    basis = solved * _basis_bytes(shape) * (everyone - 1)
    tokens = shape.groups * (shape.positive_tokens + shape.negative_tokens)
    residual = 2 * 8 * tokens * (shape.ranks - 1) // shape.ranks
    collectives += (_windows(shape) if everyone > 1 else 0) + (1 if shape.ranks > 1 else 0)
    sent = exchange + basis + residual
    return Cost(
        flops=sum(part.flops for part in parts),
        float64_flops=sum(part.float64_flops for part in parts),
        memory_bytes=sum(part.memory_bytes for part in parts),
        exchange_bytes=exchange,
        basis_bytes=basis,
        residual_bytes=residual,
        peak_bytes=_rows_peak(shape) if method == "rows" else _gram_peak(shape),
        eigen_seconds=eigen,
        compute_seconds=sum(part.seconds(rates) for part in parts) + eigen,
        communication_seconds=sent / rates.link_bandwidth + collectives * rates.latency,
    )


def choose_method(shape: PassShape, rates: MachineRates) -> tuple[Method, dict[str, Cost]]:
    """The method with the shorter predicted time; `rows` where both are equal.

    Args:
        shape: Sizes of the pass; the same on all ranks.
        rates: The same on all ranks (see `measure_rates`), so that all choose alike.

    Returns:
        The method, and the prediction of both.
    """
    costs: dict[str, Cost] = {method: cost_of(method, shape, rates) for method in METHODS}
    return min(METHODS, key=lambda method: costs[method].seconds), costs


def describe_choice(method: str, costs: Mapping[str, Cost]) -> str:
    """One line for the log: the method, its prediction and that of the other.

    Args:
        method: The chosen method.
        costs: Prediction of both.
    """
    predictions = [
        f"{name} {_scaled(cost.seconds, 's')}, {_scaled(cost.flops + cost.float64_flops, 'FLOP')} "
        f"({_scaled(cost.float64_flops, 'FLOP')} of them float64), "
        f"{_scaled(cost.bytes_sent, 'B')} sent, {_scaled(cost.peak_bytes, 'B')} of memory"
        for name, cost in sorted(costs.items(), key=lambda item: item[0] != method)
    ]
    return f"subspace method {method}; predicted per rank and pass: {'; '.join(predictions)}"


def measure_rates(
    device: torch.device | str, process_group: dist.ProcessGroup | None = None
) -> MachineRates:
    """Times small products, a copy, an eigen-decomposition and an all-gather on this machine.

    Takes tens of milliseconds after the first use of the device. With a group all its ranks have to
    call it; each rate is then the mean over the ranks, added in rank order, the same bits on all.

    Args:
        device: Where the pass runs.
        process_group: Ranks that exchange rows or matrices; None: one rank, which sends nothing.

    Returns:
        The rates; without other ranks the link is infinitely fast.
    """
    device = torch.device(device)
    size, copied = MEASURED_CUDA if device.type == "cuda" else MEASURED_CPU
    source = torch.ones(copied, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    order = torch.arange(1.0, 129.0, dtype=torch.float64, device=device)
    small = torch.minimum(order, order[:, None])  # No two eigenvalues alike: nothing is skipped.
    local = [
        _product_rate(size, torch.float32, device),
        _product_rate(size, torch.float64, device),
        2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device),
        *_link_rates(source[: copied // 4], process_group),
        _best_seconds(lambda: torch.linalg.eigh(small), device) / len(small),
    ]
    return MachineRates(*_rank_mean(local, device, process_group))


@dataclass(frozen=True)
class _Part:
    """Work that takes as long as its arithmetic or its memory traffic."""

    flops: int
    float64_flops: int
    memory_bytes: int

    def seconds(self, rates: MachineRates) -> float:
        arithmetic = self.flops / rates.float32_flops + self.float64_flops / rates.float64_flops
        return max(arithmetic, self.memory_bytes / rates.memory_bandwidth)


def _windows(shape: PassShape) -> int:
    return -(-shape.groups // shape.window)


def _solved_at_once(shape: PassShape) -> int:
    """D: groups of one full window that the busiest owner solves."""
    return -(-min(shape.window, shape.groups) // (shape.ranks * shape.copies))


def _solved_in_turn(shape: PassShape) -> int:
    """S: a window ends with its busiest owner, so these follow each other."""
    full, rest = divmod(shape.groups, shape.window)
    owners = shape.ranks * shape.copies
    return full * -(-shape.window // owners) + -(-rest // owners)


def _share(tokens: int, shape: PassShape) -> int:
    return -(-tokens // shape.ranks)


def _triangle(hidden_size: int) -> int:
    """T: elements of the column panels that cover the upper triangle."""
    return sum(
        min(PANEL, hidden_size - start) * (hidden_size - start)
        for start in range(0, hidden_size, PANEL)
    )


def _basis_bytes(shape: PassShape) -> int:
    """Float64 directions and mean of one group."""
    return 8 * shape.hidden_size * (shape.rank + 1)


def _blocks(shape: PassShape) -> int:
    return -(-krylov_columns(shape) // BLOCK)


def _rows_parts(shape: PassShape) -> list[_Part]:
    columns, elements = krylov_columns(shape), shape.positive_tokens * shape.hidden_size
    flops = 4 * elements * columns + 4 * shape.hidden_size * columns**2
    # Every block of the space reads the float32 rows twice.
    traffic = elements * (shape.itemsize + NORM_BYTES + 2 * 4 * _blocks(shape))
    solved = _solved_in_turn(shape)
    return [_Part(solved * flops, 0, solved * traffic)]


def _gram_parts(shape: PassShape) -> list[_Part]:
    rows, hidden_size = _share(shape.positive_tokens, shape), shape.hidden_size
    columns = krylov_columns(shape)
    triangle = _triangle(hidden_size)
    normed = rows * hidden_size * (shape.itemsize + NORM_BYTES)
    added = -(-rows // ROWS) * 2 * 8 * triangle
    product = 2 * hidden_size**2 * columns + 4 * hidden_size * columns**2
    solved = _solved_in_turn(shape)
    return [
        _Part(0, shape.groups * 2 * rows * triangle, shape.groups * (normed + added)),
        _Part(0, solved * product, solved * _blocks(shape) * 8 * hidden_size**2),
    ]


def _scoring(shape: PassShape) -> _Part:
    elements = shape.groups * _share(shape.negative_tokens, shape) * shape.hidden_size
    return _Part(0, 2 * elements * shape.rank, elements * (shape.itemsize + SCORE_BYTES))


def _rows_exchange(shape: PassShape) -> tuple[int, int]:
    """Bytes sent by a rank, and collectives."""
    if shape.ranks == 1:
        return 0, 0
    part = _share(shape.positive_tokens, shape) * shape.hidden_size * shape.itemsize
    return _to_owners(shape.groups * part, shape), _windows(shape)


def _gram_exchange(shape: PassShape) -> tuple[int, int]:
    if shape.ranks == 1:
        return 0, 0
    held = 8 * shape.groups * _triangle(shape.hidden_size)
    sent = held * (shape.ranks - 1) if shape.window == 1 else _to_owners(held, shape)
    return sent, _windows(shape) * -(-shape.hidden_size // PANEL)


def _to_owners(held: int, shape: PassShape) -> int:
    """Of what a rank holds, all but its own groups; copies share the sending."""
    return held * (shape.ranks - 1) // (shape.ranks * shape.copies)


def _rows_peak(shape: PassShape) -> int:
    window, at_once = min(shape.window, shape.groups), _solved_at_once(shape)
    row, group = shape.hidden_size * shape.itemsize, shape.positive_tokens * shape.hidden_size
    received = group * shape.itemsize if shape.ranks > 1 else 0
    space = 2 * 4 * shape.hidden_size * krylov_columns(shape)
    held = _share(shape.positive_tokens, shape) * row + _basis_bytes(shape)
    return window * held + at_once * (received + 4 * group + space)


def _gram_peak(shape: PassShape) -> int:
    window, at_once = min(shape.window, shape.groups), _solved_at_once(shape)
    matrix = 8 * shape.hidden_size**2
    panels = 8 * min(PANEL, shape.hidden_size) * shape.hidden_size * shape.ranks
    received = panels if shape.ranks > 1 else 0
    space = 2 * 8 * shape.hidden_size * krylov_columns(shape)
    return window * (matrix + _basis_bytes(shape)) + at_once * (matrix + received + space)


def _scaled(value: float, unit: str) -> str:
    if value == 0:
        return f"0 {unit}"
    power = min(max(math.floor(math.log10(value) / 3), -2), 5)
    return f"{value / 1000**power:.4g} {('µ', 'm', '', 'k', 'M', 'G', 'T', 'P')[power + 2]}{unit}"


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Shortest of three runs after one that warms up."""
    seconds = []
    for _ in range(4):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _product_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    return 2 * size**3 / _best_seconds(lambda: matrix @ matrix, device)


def _link_rates(
    tensor: torch.Tensor, process_group: dist.ProcessGroup | None
) -> tuple[float, float]:
    """Bytes per second sent by a rank, and seconds of a tiny collective."""
    if process_group is None or dist.get_world_size(process_group) == 1:
        return math.inf, 0.0
    others = dist.get_world_size(process_group) - 1
    latency = _gather_seconds(tensor[:1], process_group)
    seconds = _gather_seconds(tensor, process_group)
    return others * tensor.nbytes / max(seconds - latency, 1e-3 * seconds), latency


def _gather_seconds(tensor: torch.Tensor, process_group: dist.ProcessGroup) -> float:
    ranks = dist.get_world_size(process_group)
    gathered = list(tensor.new_empty((ranks, *tensor.shape)).unbind(0))
    return _best_seconds(
        lambda: dist.all_gather(gathered, tensor, group=process_group), tensor.device
    )


def _rank_mean(
    values: list[float], device: torch.device, process_group: dist.ProcessGroup | None
) -> list[float]:
    if process_group is None or dist.get_world_size(process_group) == 1:
        return values
    local = torch.tensor(values, dtype=torch.float64, device=device)
    ranks = dist.get_world_size(process_group)
    gathered = [torch.empty_like(local) for _ in range(ranks)]
    dist.all_gather(gathered, local, group=process_group)
    return (sum(gathered[1:], gathered[0]) / ranks).tolist()
