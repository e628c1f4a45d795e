"""The table of GPUs, and rates of the user's own."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_resrl.errors import SettingError
from megatron_resrl.planning.gpus import GPUS, MATRIX_SHARE, Rates, find_gpu

OWN = Rates(
    gpu_memory_gib=64, matrix_tflops=500, memory_gb_s=2000, nvlink_gb_s=200, network_gb_s=12.5
)


def test_gpu_rates_are_reached_shares_of_the_peak() -> None:
    gpu = find_gpu("H100", Rates())
    assert gpu.matrix_rate("bfloat16") == pytest.approx(989e12 * 0.803 * MATRIX_SHARE)
    assert gpu.matrix_rate("float8_e4m3fn") == pytest.approx(1979e12 * 0.709 * MATRIX_SHARE)
    # An unusual type is as slow as fp32, not free.
    assert gpu.matrix_rate("float128") == gpu.matrix_rate("float32")


def test_gpu_table_grows_from_a100_to_b200() -> None:
    order = [GPUS[name] for name in ("a100-40gb", "a100-80gb", "h100", "h200", "b200")]
    assert [gpu.memory_rate for gpu in order] == sorted(gpu.memory_rate for gpu in order)
    assert order[0].matrix_rate("bfloat16") < order[2].matrix_rate("bfloat16")
    assert order[2].matrix_rate("bfloat16") < order[4].matrix_rate("bfloat16")


def test_gpu_rates_of_the_user_win() -> None:
    gpu = find_gpu("h100", Rates(matrix_tflops=400, gpu_memory_gib=94))
    assert gpu.matrix_flops["bfloat16"] == 400e12
    assert gpu.matrix_flops["float64"] == GPUS["h100"].matrix_flops["float64"]
    assert gpu.memory == 94 * 2**30
    assert gpu.network == GPUS["h100"].network


def test_gpu_unknown_with_all_rates_is_accepted() -> None:
    gpu = find_gpu("mi300", OWN)
    assert (gpu.memory, gpu.memory_bandwidth, gpu.nvlink) == (64 * 2**30, 2e12, 2e11)
    assert gpu.network == 12.5e9


def test_gpu_unknown_is_refused_with_the_list() -> None:
    with pytest.raises(SettingError) as error:
        find_gpu("mi300", dataclasses.replace(OWN, network_gb_s=None))
    text = str(error.value)
    assert "--gpu = 'mi300'" in text
    assert all(name in text for name in GPUS)
    assert text.endswith("or --network_gb_s")


def test_gpu_rate_of_zero_is_refused() -> None:
    with pytest.raises(SettingError, match="--nvlink_gb_s = 0"):
        find_gpu("h100", Rates(nvlink_gb_s=0))
