"""What the subspace pass costs, by the form in which a group's positives are kept and exchanged.

A pass takes the prompt groups of one pool window by window, in one of two forms:

* `rows`: the sampled hidden states of a group are sent to the rank that owns the group, which
  decomposes them as `basis.rows_work` says;
* `gram`: every rank adds up a float64 scatter matrix per group; the owner sums the ranks' matrices
  in rank order and decomposes the sum as `basis.matrix_work` says. The matrix of a window of one
  group goes to all ranks, and all decompose it.

Both end alike: bases go back to all ranks, every rank scores its own negative tokens in float64,
and the residuals are added over the ranks. Where tensor-parallel ranks hold copies of a token they
divide the tokens, so that no rank does what another has done.

The numbers are main terms, for the busiest rank and the whole pass. A part takes as long as its
arithmetic or its memory traffic, whichever is longer; parts do not overlap.

Letters in formulas: G groups, W groups of a window, N positive and Q negative tokens per group, H
hidden size, K rank, M columns of the block Krylov space, R ranks, D = ceil(W / R) groups of one
window solved by the same rank, T elements of the upper triangle in panels (about H (H + 256) / 2),
b bytes of a hidden value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from megatron_resrl.subspace.basis import (
    EIGEN_FLOPS,
    NARROW,
    REFINE_EXTRA,
    Form,
    Work,
    matrix_work,
    rows_work,
)
from megatron_resrl.subspace.krylov import BLOCK
from megatron_resrl.subspace.rates import MachineRates
from megatron_resrl.subspace.rows import ROWS
from megatron_resrl.subspace.statistics import PANEL

Method = Literal["rows", "gram"]
METHODS: tuple[Method, ...] = ("rows", "gram")

# Bytes that pass through memory per element of a positive token beside reading the hidden state:
# float32 layer norm and centring.
NORM_BYTES = 16
# The same per element of a negative token: float32 layer norm, float64 copy, centring, product,
# squares and their sum.
SCORE_BYTES = 64
# Bytes sent with each row: its place with the owner.
PLACE_BYTES = 8
# Collectives of a window beside the exchange: two checks, and the sum of the residuals.
STATUS_COLLECTIVES = 3


@dataclass(frozen=True)
class PassShape:
    """Sizes of one pass over the groups of one pool; the same numbers on all its ranks."""

    groups: int
    """Prompt groups with right and wrong answers (G)."""
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
    """Ranks of the stage that share a group (R): TP ranks x CP ranks, x DP ranks if groups are
    split."""
    window_rows: int
    """Rows of positives that a window may collect: resrl.max_positive_tokens x ranks."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "negative_tokens" else 1
            if value < least:
                raise ValueError(f"{field.name} is {value}, expected at least {least}")

    def window(self, method: str) -> int:
        """Groups kept at once (W), at least one; `gram` holds a matrix per rank at most."""
        fitting = self.window_rows // max(self.positive_tokens, self.rank)
        if method == "gram":
            fitting = min(fitting, self.ranks)
        return max(1, min(fitting, self.groups))


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


def cost_of(method: Method, shape: PassShape, rates: MachineRates) -> Cost:
    """Predicts one pass.

    With S = D summed over the windows (groups solved one after the other), and the arithmetic of
    one basis (`basis.Work`: products of large matrices, and narrow ones, which take twice as long
    per operation; for N and H of some thousands the form `rows` with 4 N H M narrow operations):

    * rows: S times `rows_work`; memory traffic S N H (b + 16) and that of the form;
      exchange (W - floor(W/R)) N/R (H b + 8) per window;
      peak D N H (b + 4) while rows arrive, 4 D N H and the search space afterwards.
    * gram: float64 2 G N/R T + S times `matrix_work`;
      memory traffic 16 T per 512 rows and 8 M/32 H^2 per solved group;
      exchange (W - floor(W/R)) 8 T per window, or 8 T (R - 1) where it is one group;
      peak 8 (W + 4 D) H^2 + 8 R D 256 H.
    * both: an eigen-decomposition per solved group; bases 8 S H (K + 1) (R - 1) bytes sent,
      8 W H (K + 1) bytes kept; scoring 2 G Q/R H K float64 and Q/R H (b + 64) bytes of memory
      traffic per group; residuals 16 G Q (R - 1)/R bytes sent (a ring all-reduce).

    N/R and Q/R are rounded up. Alone, a rank sends nothing, and with `rows` holds float32 rows
    only.

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
    solved = sum(-(-size // shape.ranks) for size in _windows(method, shape))
    if method == "rows":
        work, parts = _rows_parts(shape, solved)
        exchange, peak = _rows_exchange(shape), _rows_peak(shape)
    else:
        work, parts = _gram_parts(shape, solved)
        exchange, peak = _gram_exchange(shape), _gram_peak(shape)
    parts.append(_scoring(shape))
    sizes = [work.eigen_size, *_refined(method, shape)]
    eigen = solved * sum(_eigen_seconds(size, rates) for size in sizes)
    basis = _basis_exchange(method, shape)
    negatives = shape.groups * shape.negative_tokens
    residual = 2 * 8 * negatives * (shape.ranks - 1) // shape.ranks
    sent = exchange + basis + residual
    collectives = _collectives(method, shape) if shape.ranks > 1 else 0
    return Cost(
        flops=sum(part.flops for part in parts),
        float64_flops=sum(part.float64_flops for part in parts),
        memory_bytes=sum(part.memory_bytes for part in parts),
        exchange_bytes=exchange,
        basis_bytes=basis,
        residual_bytes=residual,
        peak_bytes=peak,
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


@dataclass(frozen=True)
class _Part:
    """Work that takes as long as its arithmetic or its memory traffic."""

    flops: int
    float64_flops: int
    memory_bytes: int
    slowdown: int = 1

    def seconds(self, rates: MachineRates) -> float:
        arithmetic = self.flops / rates.float32_flops + self.float64_flops / rates.float64_flops
        return max(self.slowdown * arithmetic, self.memory_bytes / rates.memory_bandwidth)


def _eigen_seconds(size: int, rates: MachineRates) -> float:
    return max(EIGEN_FLOPS * size**3 / rates.float32_flops, size * rates.column_latency)


def _windows(method: str, shape: PassShape) -> list[int]:
    """Groups of every window."""
    full, rest = divmod(shape.groups, shape.window(method))
    return [shape.window(method)] * full + [rest] * (rest > 0)


def _rows_form(shape: PassShape) -> tuple[Form, Work]:
    wanted = max(min(shape.rank, shape.positive_tokens - 1, shape.hidden_size), 0)
    return rows_work(shape.positive_tokens, shape.hidden_size, wanted)


def _refined(method: str, shape: PassShape) -> list[int]:
    """Columns of the second problem, which takes the rounding of a float32 Gram matrix out."""
    if method == "rows" and _rows_form(shape)[0] == "gram":
        return [shape.rank + REFINE_EXTRA]
    return []


def _matrix_work(shape: PassShape) -> Work:
    return matrix_work(shape.hidden_size, min(shape.rank, shape.hidden_size))


def _share(tokens: int, shape: PassShape) -> int:
    return -(-tokens // shape.ranks)


def _triangle(hidden_size: int) -> int:
    """T: elements of the column panels that cover the upper triangle."""
    return sum(
        min(PANEL, hidden_size - start) * (hidden_size - start)
        for start in range(0, hidden_size, PANEL)
    )


def _basis_bytes(shape: PassShape) -> int:
    """Float64 directions, mean, eigenvalues and trace of one group."""
    return 8 * (shape.hidden_size + 1) * (shape.rank + 1)


def _rows_parts(shape: PassShape, solved: int) -> tuple[Work, list[_Part]]:
    form, work = _rows_form(shape)
    elements = shape.positive_tokens * shape.hidden_size
    small = min(shape.positive_tokens, shape.hidden_size)
    blocks = -(-work.eigen_size // BLOCK)
    # Each panel of a Gram matrix reads what is right of it; the refinement reads all twice.
    gram_reads = 4 * elements * (small // (2 * PANEL) + 3) + 4 * small**2
    # Every block of a space reads its operator: the rows twice, or the matrix.
    traffic, narrow = {
        "full": (2 * 8 * elements, 0),
        "gram": (gram_reads, blocks * 4 * small**2),
        "rows": (0, blocks * 2 * 4 * elements),
    }[form]
    normed = elements * (shape.itemsize + NORM_BYTES)
    return work, [
        _Part(solved * work.products, solved * work.double, solved * (normed + traffic)),
        _Part(solved * work.narrow, 0, solved * narrow, slowdown=NARROW),
    ]


def _gram_parts(shape: PassShape, solved: int) -> tuple[Work, list[_Part]]:
    rows, hidden_size = _share(shape.positive_tokens, shape), shape.hidden_size
    work, triangle = _matrix_work(shape), _triangle(hidden_size)
    normed = rows * hidden_size * (shape.itemsize + NORM_BYTES)
    added = -(-rows // ROWS) * 2 * 8 * triangle
    blocks = -(-work.eigen_size // BLOCK) if work.narrow else 1
    return work, [
        _Part(0, shape.groups * 2 * rows * triangle, shape.groups * (normed + added)),
        _Part(0, solved * work.double, 0),
        _Part(0, solved * work.narrow, solved * blocks * 8 * hidden_size**2, slowdown=NARROW),
    ]


def _scoring(shape: PassShape) -> _Part:
    elements = shape.groups * _share(shape.negative_tokens, shape) * shape.hidden_size
    return _Part(0, 2 * elements * shape.rank, elements * (shape.itemsize + SCORE_BYTES))


def _sent_groups(size: int, shape: PassShape) -> int:
    """Groups of a window that the last rank, which owns the fewest, sends to others."""
    return size - size // shape.ranks


def _rows_exchange(shape: PassShape) -> int:
    if shape.ranks == 1:
        return 0
    row = shape.hidden_size * shape.itemsize + PLACE_BYTES
    sent = sum(_sent_groups(size, shape) for size in _windows("rows", shape))
    return sent * _share(shape.positive_tokens, shape) * row


def _gram_exchange(shape: PassShape) -> int:
    matrix, others = 8 * _triangle(shape.hidden_size), shape.ranks - 1
    sent = 0
    for size in _windows("gram", shape):
        sent += matrix * (others if size == 1 else _sent_groups(size, shape)) if others else 0
        sent += 8 * size * (shape.hidden_size + 1) * others
    return sent


def _shared_windows(method: str, shape: PassShape) -> list[int]:
    """Windows whose bases are known to their owners only."""
    return [size for size in _windows(method, shape) if method == "rows" or size > 1]


def _basis_exchange(method: str, shape: PassShape) -> int:
    """All-gathers padded to the busiest owner."""
    most = sum(-(-size // shape.ranks) for size in _shared_windows(method, shape))
    return most * _basis_bytes(shape) * (shape.ranks - 1)


def _collectives(method: str, shape: PassShape) -> int:
    windows = len(_windows(method, shape))
    # Numbers of rows, rows and places; or means, and panels of the matrices.
    exchange = 3 if method == "rows" else 1 + -(-shape.hidden_size // PANEL)
    return windows * (exchange + STATUS_COLLECTIVES) + len(_shared_windows(method, shape))


def _rows_peak(shape: PassShape) -> int:
    window = shape.window("rows")
    at_once = -(-window // shape.ranks)
    form, work = _rows_form(shape)
    tokens, hidden_size = shape.positive_tokens, shape.hidden_size
    small, columns = min(tokens, hidden_size), work.eigen_size
    group = tokens * hidden_size
    held = received = 0
    if shape.ranks > 1:
        held = window * _share(tokens, shape) * hidden_size * shape.itemsize
        received = at_once * group * shape.itemsize
    # Space and image in float32, and one of them in float64 for the small problem.
    workspace = {
        "full": max(1, at_once // 4) * 8 * (group + 2 * small**2),
        "gram": at_once * (4 * small**2 + (2 * 4 + 8) * small * columns),
        "rows": at_once * columns * (4 * tokens + (4 + 8) * hidden_size),
    }[form]
    rows = 4 * at_once * group
    solving = rows + workspace + window * _basis_bytes(shape)
    return max(2 * held, held + received, received + rows, solving)


def _gram_peak(shape: PassShape) -> int:
    window, hidden_size = shape.window("gram"), shape.hidden_size
    at_once = -(-window // shape.ranks)
    matrix = 8 * hidden_size**2
    # Own sums and the symmetric copy, while its halves are put together.
    solving = at_once * (4 if shape.ranks > 1 else 3) * matrix
    solving += at_once * 2 * 8 * hidden_size * _matrix_work(shape).eigen_size
    panels = 8 * min(PANEL, hidden_size) * hidden_size * shape.ranks * at_once
    return window * (matrix + _basis_bytes(shape)) + solving + (panels if shape.ranks > 1 else 0)


def _scaled(value: float, unit: str) -> str:
    if value == 0:
        return f"0 {unit}"
    power = min(max(math.floor(math.log10(value) / 3), -2), 5)
    return f"{value / 1000**power:.4g} {('µ', 'm', '', 'k', 'M', 'G', 'T', 'P')[power + 2]}{unit}"
