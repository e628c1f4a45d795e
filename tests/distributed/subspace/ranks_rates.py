"""Every rank measures the machine, and all of them must hold the same rates."""

from __future__ import annotations

import math
from dataclasses import astuple

import torch.distributed as dist

from megatron_resrl.subspace.rates import measure_rates

dist.init_process_group("gloo")
rates = astuple(measure_rates("cpu", dist.group.WORLD))
everyone = [None] * dist.get_world_size()
dist.all_gather_object(everyone, rates)
assert len(set(everyone)) == 1, f"rates differ: {everyone}"
assert all(0 < rate < math.inf for rate in rates), rates
if dist.get_rank() == 0:
    print("rates agree")
dist.destroy_process_group()
