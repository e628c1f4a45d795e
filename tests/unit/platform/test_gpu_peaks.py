"""Peaks of GPUs by the names that CUDA gives them."""

from __future__ import annotations

import pytest
import torch

from megatron_resrl.platform.gpu_peaks import peak_of


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
    ],
)
def test_peak_of_known_gpus_is_the_data_sheets(name, tflops):
    assert peak_of(name, torch.bfloat16) == tflops * 1e12


@pytest.mark.parametrize(
    "name", ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GeForce RTX 4090", "NVIDIA GH200 480GB"]
)
def test_peak_of_other_gpus_is_not_known(name):
    assert peak_of(name, torch.bfloat16) is None


def test_peak_of_a_type_without_one_is_not_known():
    assert peak_of("NVIDIA H100 80GB HBM3", torch.float32) == 67e12
    assert peak_of("NVIDIA H100 80GB HBM3", torch.int8) is None
