"""FP8 by every recipe of the device: near bf16, the same when scored and when trained."""

from __future__ import annotations

import pytest
import torch
from gpu.measured import Measured
from tiny_scoring import SEQUENCES, draw, reference, score, update

pytestmark = pytest.mark.gpu

SCALINGS = ("tensorwise", "delayed", "blockwise", "mxfp8")
LARGEST = 0.2
"""Of log-probabilities, from fp32; 0.08 with emulated products, 0.02 in the mean."""
KERNELS = 0.02
"""Between scoring and training: attention may choose another kernel where it needs gradients. By
`delayed` each pass has other scales."""
RELATIVE = 0.03
"""Of loss and gradient norm, from bf16; 0.014 with emulated products."""


@pytest.fixture(autouse=True)
def needs_engine(engine: bool) -> None:
    if not engine:
        pytest.skip("FP8 needs Transformer Engine")


def fp8(scaling: str) -> tuple[str, str]:
    """Settings; skips what this machine cannot do."""
    from transformer_engine.pytorch.quantization import FP8GlobalStateManager

    available = {
        "blockwise": FP8GlobalStateManager.is_fp8_block_scaling_available,
        "mxfp8": FP8GlobalStateManager.is_mxfp8_available,
    }
    possible, reason = available.get(scaling, FP8GlobalStateManager.is_fp8_available)()
    if not possible:
        pytest.skip(reason)
    return ("--precision.fp8=hybrid", f"--precision.fp8_recipe={scaling}")


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_fp8_trains_near_bf16(build, llama, measured: Measured, scaling: str, packed: bool) -> None:
    packing = f"--algorithm.sequence_packing={str(packed).lower()}"
    policy, bf16 = build(*fp8(scaling), packing), build(packing)
    wanted = reference(llama, policy, SEQUENCES)
    scored, in_bf16 = score(policy, SEQUENCES), score(bf16, SEQUENCES)
    error = (scored - wanted).abs()
    measured.at_most("log_probs_max", float(error.max()), LARGEST)
    measured.at_least("log_probs_mean", float(error.mean()), 0.005)  # Rounding to FP8 is real.
    measured.at_most("loss", abs(float(scored.mean() / in_bf16.mean()) - 1), RELATIVE)
    result, seen = update(policy, SEQUENCES)
    measured.equal("applied", result.applied, True)
    limit = LARGEST if scaling == "delayed" else KERNELS
    measured.at_most("scored_from_trained", float((seen - scored).abs().max()), limit)
    norm = update(bf16, SEQUENCES)[0].grad_norm
    measured.at_most("grad_norm", abs(result.grad_norm / norm - 1), RELATIVE)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_fp8_takes_sequences_of_every_length(build, measured: Measured, scaling: str) -> None:
    policy = build(*fp8(scaling))
    for length in (1, 2, 7, 8, 9, 15, 16, 17, 31, 33):
        scored = score(policy, draw(length, (1, length)))
        assert torch.isfinite(scored).all(), length


def test_fp8_layer_refuses_rows_that_are_not_aligned(cuda: bool) -> None:
    import transformer_engine.pytorch as te
    from transformer_engine.common.recipe import Float8CurrentScaling

    device = "cuda" if cuda else "cpu"
    layer = te.Linear(128, 128, bias=False, params_dtype=torch.bfloat16, device=device)
    rows = torch.zeros(12, 128, dtype=torch.bfloat16, device=device)
    with te.fp8_autocast(enabled=True, fp8_recipe=Float8CurrentScaling()):
        layer(torch.cat([rows, rows[:4]]))
        with pytest.raises(AssertionError, match="divisible by 8"):
            layer(rows)
