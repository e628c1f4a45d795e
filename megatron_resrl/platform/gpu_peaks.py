"""Peak rates of GPUs, from NVIDIA's data sheets of A100, H100, H200, L40S and DGX B200."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # Plans by formula, and `--help`, do without.


def matrix_peaks(
    bf16: float, fp32: float, fp64: float, fp8: float | None = None
) -> dict[str, float]:
    """FLOP/s by dtype name, from TFLOP/s. megatron-core leaves TF32 off: fp32 is that of FMAs."""
    rates = {"bfloat16": bf16, "float16": bf16, "float32": fp32, "float64": fp64}
    if fp8 is not None:
        rates |= {"float8_e4m3fn": fp8, "float8_e5m2": fp8}
    return {name: rate * 1e12 for name, rate in rates.items()}


PEAKS: Mapping[str, Mapping[str, float]] = {
    "a100": matrix_peaks(312, 19.5, 19.5),
    "h100": matrix_peaks(989, 67, 67, 1979),
    "h200": matrix_peaks(989, 67, 67, 1979),
    "b200": matrix_peaks(2250, 75, 37, 4500),
    "l40s": matrix_peaks(362, 91.6, 1.4, 733),
}
"""FLOP/s of matrix products without sparsity, by GPU and dtype name; of H100 and H200 the SXM
modules."""

_SLOWER = ("pcie", "nvl")
"""Words in the names of H100 and H200 that are no SXM modules."""


def peak_of(name: str, dtype: torch.dtype | str) -> float | None:
    """FLOP/s of dense matrix products; None: the table lacks the device.

    Args:
        name: As CUDA names the device, e.g. `NVIDIA H100 80GB HBM3`.
        dtype: Of the factors, or its name.
    """
    gpu = gpu_in_table(name)
    return None if gpu is None else PEAKS[gpu].get(str(dtype).removeprefix("torch."))


def gpu_in_table(name: str) -> str | None:
    """The key of `PEAKS` for a device as CUDA names it; None: the table lacks the device."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    gpu = next((word for word in words if word in PEAKS), None)
    slower = gpu in ("h100", "h200") and any(word in words for word in _SLOWER)
    return None if slower else gpu
