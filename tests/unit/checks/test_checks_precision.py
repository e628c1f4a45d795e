"""Optimizers that this machine cannot run are refused."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_optimizers_that_need_cuda_are_refused_without_it(refused):
    problem = refused("--optimizer.megatron.optimizer_cpu_offload=true")
    assert problem.setting == "optimizer.megatron.optimizer_cpu_offload"
    assert "CUDA" in problem.problem
