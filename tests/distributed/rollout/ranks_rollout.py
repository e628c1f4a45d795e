"""Every rank: decode with each layout of this world size; rank 0 compares and prints.

Arguments: `default` or `slow`, which layouts; folders of the models.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from tiny_decoding import decode, greedy_reference

LAYOUTS = {
    1: {"TP1": {}},
    2: {
        "TP2": {"tensor_model_parallel_size": 2},
        "TP2+SP": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        "PP2": {"pipeline_model_parallel_size": 2},
        "PP2xVPP2": {
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": 2,
        },
        "DP2": {},
        "CP2": {"context_parallel_size": 2},
    },
    4: {
        "TP2xPP2": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
        "CP2xTP2+SP": {
            "context_parallel_size": 2,
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
        },
    },
}
_TP2_EP = {
    "tensor_model_parallel_size": 2,
    "sequence_parallel": True,
    "expert_tensor_parallel_size": 1,
}
EXPERT_LAYOUTS = {
    1: {"TP1": {}},
    2: {
        "TP2+SP": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        "TP2+SPxEP2": {**_TP2_EP, "expert_model_parallel_size": 2},
        "DP2xEP2": {"expert_model_parallel_size": 2},
    },
    4: {
        "TP2+SPxDP2xEP4": {**_TP2_EP, "expert_model_parallel_size": 4},
        "PP2xDP2xEP2": {"pipeline_model_parallel_size": 2, "expert_model_parallel_size": 2},
    },
}
_TWO = {1: LAYOUTS[1], 2: {name: LAYOUTS[2][name] for name in ("TP2", "PP2")}}
_MIXTRAL = {1: LAYOUTS[1], 2: {"TP2+SPxEP2": EXPERT_LAYOUTS[2]["TP2+SPxEP2"]}}
PARTS = {
    # What decodes is the same for all dense families but Gemma, and for all mixtures of experts.
    "default": {
        "llama": {1: LAYOUTS[1]},
        "qwen2": {1: LAYOUTS[1]},
        "qwen3": LAYOUTS,
        "qwen3_moe": EXPERT_LAYOUTS,
        "mistral": {1: LAYOUTS[1]},
        "mixtral": _MIXTRAL,
        "gemma3": _TWO,
        "qwen3_windowed": _TWO,
        "mixtral_windowed": _MIXTRAL,
    },
    "slow": {"llama": LAYOUTS, "qwen2": LAYOUTS, "mixtral": EXPERT_LAYOUTS},
}


def main(part: str, models: list[str]) -> None:
    world = int(os.environ["WORLD_SIZE"])
    paths = [Path(model) for model in models]
    decoded = [
        (name, path, layout)
        for path in paths
        for name, layout in PARTS[part][path.name].get(world, {}).items()
    ]
    # Layout by layout, because process groups take long.
    found = {
        f"{path.name} {name}": decode(path, layout)
        for name, path, layout in sorted(decoded, key=lambda each: each[0])
    }
    if world == 1:
        found |= {f"{path.name} reference": greedy_reference(path) for path in paths}
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
