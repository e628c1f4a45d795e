"""Schedules of the learning rate against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_resrl.config.schema import OptimizerConfig
from megatron_resrl.policy.optimizer import learning_rate_schedule

STEPS, WARM_UP, DECAY = 20, 4, 8
SHAPES = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "exponential": lambda done: 2 * 0.5**done - 1,
    "minus_sqrt": lambda done: 1 - math.sqrt(done),
}


@pytest.mark.setting("optimizer.lr_wsd_decay_steps", "optimizer.lr_wsd_decay_style")
@pytest.mark.parametrize("shape", SHAPES)
def test_learning_rate_of_wsd_is_stable_and_then_decays(shape):
    settings = OptimizerConfig(
        lr=0.5,
        min_lr=0.1,
        lr_warmup_steps=WARM_UP,
        lr_decay_style="WSD",
        lr_wsd_decay_steps=DECAY,
        lr_wsd_decay_style=shape,
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    schedule = learning_rate_schedule(optimizer, settings, STEPS)
    rates = []
    for _ in range(STEPS):
        schedule.step(increment=1)
        rates.append(optimizer.param_groups[0]["lr"])
    decay = [0.1 + 0.4 * SHAPES[shape](step / DECAY) for step in range(1, DECAY + 1)]
    warm_up = [0.5 * step / WARM_UP for step in range(1, WARM_UP + 1)]
    # Python's floats in another order of operations.
    assert rates == pytest.approx([*warm_up, *[0.5] * (STEPS - WARM_UP - DECAY), *decay], rel=1e-12)
