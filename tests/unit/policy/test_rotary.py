"""The CPU's rotary embedding beside megatron-core's, bit by bit."""

from __future__ import annotations

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

from megatron_resrl.policy.rotary import rotate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_rotate_and_its_gradient_equal_megatron_core(dtype: torch.dtype, factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # [s, b, heads, head_dim], a part of wider rows, as out of a matrix product.
    projected = torch.randn(7, 2, 3, 24, generator=generator).to(dtype)
    angles = torch.randn(7, 1, 1, 4, generator=generator).mul(3).repeat(1, 1, 1, 2)
    gradient = torch.randn(7, 2, 3, 8, generator=generator).to(dtype)
    found = []
    for rotation in (
        lambda states: rotate(states, angles, factor),
        lambda states: _apply_rotary_pos_emb_bshd(states, angles, mscale=factor),
    ):
        states = projected[..., 8:16].detach().requires_grad_()
        rotated = rotation(states)
        rotated.backward(gradient)
        found.append((rotated.detach(), states.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_rotate_lays_each_head_out_as_attention_reads_it() -> None:
    rotated = rotate(torch.randn(5, 2, 3, 8), torch.randn(5, 1, 1, 8))
    assert rotated.permute(1, 2, 0, 3).is_contiguous()
