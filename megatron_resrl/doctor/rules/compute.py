"""Rules on the matrix product of every rank."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

from megatron_resrl.doctor.facts.measured import Measured, placed
from megatron_resrl.doctor.facts.rank import RankFacts
from megatron_resrl.doctor.finding import Finding
from megatron_resrl.platform.gpu_peaks import peak_of

SLOW_GPU, SLOW_CPU = 0.85, 0.5
"""Of the median of all ranks. CPUs are shared with whatever else runs."""
FAR_FROM_PEAK = 0.5
"""Of the data sheet's rate of matrix products."""
HEATED = 0.85
"""Of the fastest part of the product, in the last part."""


def judge_products(
    measured: Mapping[int, Measured], places: Mapping[int, RankFacts]
) -> Iterator[Finding]:
    """Ranks that multiply more slowly than the others, or than their GPU should.

    Args:
        measured: By rank.
        places: Of each rank.
    """
    rates = {rank: facts.flops for rank, facts in measured.items() if facts.flops}
    if not rates:
        return
    median = statistics.median(rates.values())
    for rank, rate in rates.items():
        facts = measured[rank]
        on_gpu = facts.device != "cpu"
        share = SLOW_GPU if on_gpu else SLOW_CPU
        where = str(placed(places[rank], facts))
        said = f"a matrix product runs at {rate / 1e12:.3g} TFLOP/s"
        if len(rates) > 1 and rate < share * median:
            yield Finding(
                "compute.straggler",
                where,
                f"{said}, and at {median / 1e12:.3g} on the median rank: every step waits for it",
                "see its clocks, temperature and power (nvidia-smi -q), and exclude the host "
                "(sbatch --exclude)"
                if on_gpu
                else "see what else runs there",
                "wrong" if on_gpu else "note",
            )
            continue
        peak = peak_of(facts.device or "", facts.dtype)
        if peak is not None and rate < FAR_FROM_PEAK * peak:
            yield Finding(
                "compute.slow",
                where,
                f"{said}; the data sheet says {peak / 1e12:.0f}",
                "see whether another process computes there, and clocks, temperature and power "
                "(nvidia-smi -q)",
            )
        elif on_gpu and facts.last_flops and facts.last_flops < HEATED * (facts.best_flops or 0):
            yield Finding(
                "compute.heated",
                where,
                f"a matrix product slows down from {(facts.best_flops or 0) / 1e12:.3g} to "
                f"{facts.last_flops / 1e12:.3g} TFLOP/s within seconds",
                "see its cooling and its power limit",
                "note",
            )
