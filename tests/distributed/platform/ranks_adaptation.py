"""One rank: loads a model with transformers after megatron-core is adapted to the CPU.

Adaptation comes before everything else, as in a run: a device context used before it would hide
what it could break. Arguments: directory of the model, and its logits as made without adaptation.
Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from megatron_resrl.platform.cpu import adapt_megatron_core


def logits(path: str) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert not any(parameter.is_meta for parameter in model.parameters())
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits


def gathers_without_copies() -> bool:
    """Whether a single rank's own buffer stays as it is, and another one is copied."""
    from megatron.core.distributed.param_and_grad_buffer import dist_all_gather_func

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    own, other = torch.arange(3.0), torch.zeros(3)
    version = own._version
    dist_all_gather_func(own, own, group=dist.group.WORLD)
    dist_all_gather_func(other, own, group=dist.group.WORLD)
    dist.destroy_process_group()
    return own._version == version and torch.equal(own, other)


def main() -> None:
    adapt_megatron_core()
    adapt_megatron_core()
    same_logits = torch.equal(logits(sys.argv[1]), torch.load(sys.argv[2]))
    with torch.device("meta"):
        in_context = [torch.zeros(2), torch.empty(2), torch.tensor([1.0]), torch.arange(3)]
    on_cuda = [
        torch.zeros(2, device="cuda"),
        torch.empty(2, device=torch.device("cuda", 0), pin_memory=True),
        torch.zeros(2).to("cuda"),
        torch.zeros(2).to(device="cuda", dtype=torch.bfloat16),
        torch.zeros(2).cuda(),
    ]
    found = {
        "same_logits": same_logits,
        "meta_context": all(tensor.is_meta for tensor in in_context),
        "cuda_names_cpu": [tensor.device.type for tensor in on_cuda] == ["cpu"] * len(on_cuda),
        "own_buffers_stay": gathers_without_copies(),
        "dtype_change": str(torch.zeros(2).type(torch.float64).dtype) == "torch.float64",
    }
    print(json.dumps({"found": found}))


if __name__ == "__main__":
    main()
