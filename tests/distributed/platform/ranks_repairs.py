"""One rank where CUDA seems to be there, and neither Transformer Engine nor Apex is.

Prints one line of JSON: what megatron-core then can do.
"""

from __future__ import annotations

import json

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.transformer.moe import moe_utils

from megatron_resrl.platform.cpu import adapt_megatron_core

TO_DEVICE = torch.Tensor.cuda


def main() -> None:
    torch.cuda.is_available = lambda: True
    upstream = DistributedOptimizer.load_state_dict
    adapt_megatron_core()
    tokens, weight = torch.randn(3, 4), torch.randn(2, 4, requires_grad=True)
    logits = moe_utils.router_gating_linear(tokens, weight, None, torch.float32)
    logits.sum().backward()
    found = {
        "router": torch.allclose(logits, tokens @ weight.T),
        "router_gradient": torch.allclose(weight.grad, tokens.sum(0).expand(2, -1)),
        "steps_are_kept": DistributedOptimizer.load_state_dict is not upstream,
        "device_names_are_left_alone": torch.Tensor.cuda is TO_DEVICE,
    }
    print(json.dumps({"found": found}))


if __name__ == "__main__":
    main()
