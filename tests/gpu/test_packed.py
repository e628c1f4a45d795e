"""Packed sequences give what padded ones give, and those that share a prompt what copies give."""

from __future__ import annotations

import pytest
from gpu.measured import Measured
from tiny_scoring import SEQUENCES, score, update

from megatron_resrl.policy.batches import TokenSequence
from megatron_resrl.policy.policy import Policy

pytestmark = pytest.mark.gpu

LIMITS = {"fp32": (1e-5, 1e-4), "bf16": (0.03, 1e-2)}
"""Of log-probabilities, and relative of the gradient norm: rounding, and other kernels."""


@pytest.mark.parametrize("dtype", LIMITS)
def test_packed_equals_padded(build, engine: bool, measured: Measured, dtype: str) -> None:
    if engine and dtype == "fp32":
        pytest.skip("Transformer Engine's kernels of packed sequences take 16-bit numbers")
    settings = (f"--precision.params_dtype={dtype}", "--algorithm.sequence_packing=true")
    compare(build(*settings), build(settings[0]), SEQUENCES, measured, dtype)


@pytest.mark.parametrize("dtype", LIMITS)
def test_shared_prompts_equal_copies(build, engine: bool, measured: Measured, dtype: str) -> None:
    if engine and dtype == "fp32":
        pytest.skip("Transformer Engine's kernels of packed sequences take 16-bit numbers")
    shared, copies = (
        build(f"--precision.params_dtype={dtype}", f"--algorithm.shared_prompts={asked}")
        for asked in ("auto", "never")
    )
    if not shared.shared_prompts:
        pytest.skip("Transformer Engine has no kernel for shared prompts on this GPU")
    prompt = SEQUENCES[-1].prompt
    sequences = [TokenSequence(prompt, each.response) for each in SEQUENCES]
    compare(shared, copies, sequences, measured, dtype)


def compare(
    first: Policy,
    second: Policy,
    sequences: list[TokenSequence],
    measured: Measured,
    dtype: str,
) -> None:
    apart = (score(first, sequences) - score(second, sequences)).abs()
    norms = [update(policy, sequences)[0].grad_norm for policy in (first, second)]
    log_probs, grad_norm = LIMITS[dtype]
    measured.at_most("log_probs_max", float(apart.max()), log_probs)
    measured.at_most("grad_norm", abs(norms[0] / norms[1] - 1), grad_norm)
