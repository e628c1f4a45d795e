"""Two ranks load checkpoints of Megatron-LM in other layouts than they were saved in.

Arguments: folder of Hugging Face models, folder of the checkpoints, tokenizer. Rank 0 prints one
line of JSON: by model, which weights differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tiny_conversion
import torch.distributed as dist
from layouts import begin_layout

from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig, Recipe
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.weights.hugging_face import export_weights

LAYOUTS = {
    "llama": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
    "qwen2": {"pipeline_model_parallel_size": 2},
    "qwen3": {"tensor_model_parallel_size": 2},
    "mixtral": {"pipeline_model_parallel_size": 2},
    "qwen3_moe": {"expert_model_parallel_size": 2},
}


def main() -> None:
    models, saved, tokenizer = map(Path, sys.argv[1:])
    found = {}
    for name, layout in LAYOUTS.items():
        recipe = Recipe(
            model=ModelConfig(str(saved / name), str(tokenizer)),
            parallel=ParallelConfig(**layout, timeout_minutes=1.0),
            precision=PrecisionConfig("fp32"),
        )
        begin_layout(recipe.parallel, seed=3)
        policy = build_policy(recipe, trainable=False)
        weights = {n: t.clone() for n, t in export_weights(policy.modules, policy.hf_config)}
        found[name] = tiny_conversion.differing(weights, tiny_conversion.tensors(models / name))
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
