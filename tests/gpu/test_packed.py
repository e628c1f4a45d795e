"""Packed sequences give what padded ones give."""

from __future__ import annotations

import pytest
from gpu.measured import Measured
from tiny_scoring import SEQUENCES, score, update

pytestmark = pytest.mark.gpu

LIMITS = {"fp32": (1e-5, 1e-4), "bf16": (0.03, 1e-2)}
"""Of log-probabilities, and relative of the gradient norm: rounding, and other kernels."""


@pytest.mark.parametrize("dtype", LIMITS)
def test_packed_equals_padded(build, engine: bool, measured: Measured, dtype: str) -> None:
    if engine and dtype == "fp32":
        pytest.skip("Transformer Engine's kernels of packed sequences take 16-bit numbers")
    settings = (f"--precision.params_dtype={dtype}", "--algorithm.sequence_packing=true")
    packed, padded = build(*settings), build(settings[0])
    apart = (score(packed, SEQUENCES) - score(padded, SEQUENCES)).abs()
    norms = [update(policy, SEQUENCES)[0].grad_norm for policy in (packed, padded)]
    log_probs, grad_norm = LIMITS[dtype]
    measured.at_most("log_probs_max", float(apart.max()), log_probs)
    measured.at_most("grad_norm", abs(norms[0] / norms[1] - 1), grad_norm)
