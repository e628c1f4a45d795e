"""Every rank: the source of the GPU back ends, read in two passes with one broken off on rank 0."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist

from megatron_resrl.config import schema
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.rollout.weight_sync.device_source import PolicySource
from megatron_resrl.rollout.weight_sync.stream import ServedWeights
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.weights.bridge import GroupedNames, bridge_of


def main(model: str, layout: str) -> None:
    recipe = schema.Recipe(
        model=schema.ModelConfig(path=model),
        precision=schema.PrecisionConfig("fp32"),
        parallel=schema.ParallelConfig(**json.loads(layout)),
    )
    initialize(recipe.parallel, 0)
    policy = build_policy(recipe, trainable=False)
    source = PolicySource(ServedWeights(policy))
    told = [(facts.name, str(facts.dtype), facts.shape) for facts in source.metadata()]
    # Rank 0 breaks off, as vLLM's sender does when a server fails; the others go to the end.
    source.begin_round()
    for number, _ in enumerate(source):
        if dist.get_rank() == 0 and number == 2:
            break
    if dist.get_rank() == 0:
        source.finish_pass()
    # Or before it has begun.
    source.begin_round()
    if dist.get_rank() == 0:
        source.finish_pass()
    else:
        for _ in source:
            pass
    source.begin_round()
    came = [(name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in source]
    num_bytes = sum(tensor.nbytes for _, tensor in source)
    # mbridge exports a tied output matrix of the last stage once more.
    chunks = [GroupedNames(module) for module in policy.modules]
    with torch.no_grad():
        bridge = bridge_of(policy.hf_config, policy.modules[0])
        theirs = dict(bridge.export_weights(chunks))
    ours = dict(ServedWeights(policy).once())
    same = list(ours) == list(theirs) and all(torch.equal(ours[n], theirs[n]) for n in ours)
    dist.barrier()
    if dist.get_rank() == 0:
        result = {"told": told, "came": came, "bytes": [num_bytes, source.num_bytes], "same": same}
        print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
