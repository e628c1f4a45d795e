"""Sums over weights that survive fusion, padding and another order of elements."""

from __future__ import annotations

import pytest
import torch

from megatron_resrl.rollout.weight_sync.worker.megatron_resrl_checksums import (
    fused_name,
    tensor_sum,
    wrapped,
)

PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensor_sum_changes_with_any_one_element(dtype):
    tensor = torch.randn(64, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = tensor_sum(tensor)
    for row, column in ((0, 0), (63, 32), (10, 7)):
        changed = tensor.clone()
        # The smallest change that the type can hold.
        changed[row, column] = torch.nextafter(tensor[row, column], tensor.new_tensor(9e4))
        assert tensor_sum(changed) != whole


def test_tensor_sum_shows_two_changes_that_cancel():
    assert tensor_sum(torch.tensor([1.0, 2.0])) != tensor_sum(torch.tensor([1.5, 1.5]))
    assert tensor_sum(torch.tensor([1.0, -1.0])) != tensor_sum(torch.tensor([0.5, -0.5]))


def test_tensor_sum_of_parts_is_that_of_the_fused_matrix():
    parts = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(1))
    fused = torch.cat([*parts.flip(0), torch.zeros(5, 16)]).T.contiguous()
    assert wrapped(sum(map(tensor_sum, parts))) == tensor_sum(fused)


def test_tensor_sum_is_the_same_in_bf16_and_fp32():
    tensor = torch.randn(50, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert tensor_sum(tensor) == tensor_sum(tensor.float())
    assert tensor_sum(torch.tensor([0.0, -0.0])) == 0


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("model.layers.0.self_attn.k_proj.bias", "model.layers.0.self_attn.qkv_proj.bias"),
        ("model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate_up_proj.weight"),
        ("model.layers.1.mlp.experts.3.up_proj.weight", "model.layers.1.mlp.experts"),
        ("model.layers.1.mlp.experts.w13_weight", "model.layers.1.mlp.experts"),
        ("model.layers.1.mlp.gate.weight", "model.layers.1.mlp.gate.weight"),
    ],
)
def test_fused_name_is_the_parameter_with_the_tensor(name, whole):
    assert fused_name(name, PACKED) == whole
