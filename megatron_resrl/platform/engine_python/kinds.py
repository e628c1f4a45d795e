"""The enumerations of `transformer_engine_torch`, and torch's types for its numbers."""

from __future__ import annotations

import enum
from typing import Any

import torch


class DType(enum.IntEnum):
    """Transformer Engine's types of numbers."""

    kByte = 0
    kInt32 = 1
    kFloat32 = 2
    kFloat16 = 3
    kBFloat16 = 4
    kFloat8E4M3 = 5
    kFloat8E5M2 = 6
    kFloat4E2M1 = 7
    kInt64 = 8


TORCH_DTYPE = {
    DType.kByte: torch.uint8,
    DType.kFloat32: torch.float32,
    DType.kFloat16: torch.float16,
    DType.kBFloat16: torch.bfloat16,
}

FP8 = {
    DType.kFloat8E4M3: (torch.float8_e4m3fn, 448.0),
    DType.kFloat8E5M2: (torch.float8_e5m2, 57344.0),
}
"""torch's type of an FP8 format, and its largest number."""


class NVTE_Fused_Attn_Backend(enum.IntEnum):
    """Kernels of fused attention."""

    NVTE_No_Backend = -1
    NVTE_F16_max512_seqlen = 0
    NVTE_F16_arbitrary_seqlen = 1
    NVTE_FP8 = 2


class Float8BlockScaleTensorFormat(enum.IntEnum):
    """How scales of blocks lie: as products read them, or as they are gathered."""

    GEMM_READY = 0
    COMPACT = 1


def _numbered(name: str, values: str) -> Any:
    return enum.IntEnum(name, {value: number for number, value in enumerate(values.split())})


FP8FwdTensors = _numbered(
    "FP8FwdTensors",
    "GEMM1_INPUT GEMM1_WEIGHT GEMM1_OUTPUT GEMM2_INPUT GEMM2_WEIGHT GEMM2_OUTPUT "
    "GEMM3_INPUT GEMM3_WEIGHT GEMM3_OUTPUT",
)
FP8BwdTensors = _numbered(
    "FP8BwdTensors",
    "GRAD_OUTPUT1 GRAD_INPUT1 GRAD_OUTPUT2 GRAD_INPUT2 GRAD_OUTPUT3 GRAD_INPUT3",
)
CommOverlapType = _numbered("CommOverlapType", "RS AG")

ENUMERATIONS = (
    DType,
    NVTE_Fused_Attn_Backend,
    FP8FwdTensors,
    FP8BwdTensors,
    CommOverlapType,
    Float8BlockScaleTensorFormat,
)
