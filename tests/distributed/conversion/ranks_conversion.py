"""Two ranks load converted models, and write checkpoints as a run does.

Arguments: folder of Hugging Face models, folder of the converted ones, folder to write into.
Rank 0 prints one line of JSON: per layout and family, which exported tensors differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tiny_conversion
import torch
import torch.distributed as dist
from layouts import begin_layout
from megatron.core import dist_checkpointing, parallel_state

from megatron_resrl.checkpoint.checkpoint import TrainerState, save_checkpoint
from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig, Recipe
from megatron_resrl.platform import distributed as platform
from megatron_resrl.policy.layer_spec import uses_transformer_engine
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.weights.hugging_face import export_weights

DENSE = ("llama", "qwen2")
MOE = ("qwen3_moe", "qwen3_moe_mixed")
LAYOUTS: dict[str, tuple[dict[str, int], tuple[str, ...]]] = {
    "tp2": ({"tensor_model_parallel_size": 2}, (*DENSE, "mistral", "qwen3_moe", "gemma3")),
    "pp2": ({"pipeline_model_parallel_size": 2}, (*DENSE, *MOE)),
    "pp2_vpp2": (
        {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
        DENSE,
    ),
    "ep2": ({"expert_model_parallel_size": 2}, (*MOE, "mixtral")),
}


def policy(path: Path, layout: dict[str, int], *, trainable: bool = False) -> Policy:
    recipe = Recipe(
        model=ModelConfig(str(path)),
        parallel=ParallelConfig(**layout, timeout_minutes=1.0),
        precision=PrecisionConfig("fp32"),
    )
    begin_layout(recipe.parallel, seed=3)
    return build_policy(recipe, trainable=trainable)


def exported(model: Policy) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in export_weights(model.modules, model.hf_config)}


def load_whole_state(model: Policy, folder: Path) -> None:
    """megatron-core's own way into parameters that were overwritten.

    Extra states included, but for those of Transformer Engine's layers, which no conversion makes.
    """
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    metadata = {"dp_cp_group": group, "singleton_local_shards": False}
    for module in model.modules:
        for parameter in module.parameters():
            parameter.data.fill_(torch.nan)
        state = module.sharded_state_dict(metadata=metadata)
        extra = [name for name in state if "._extra_state" in name]
        left_out = dict.fromkeys(extra if uses_transformer_engine() else ())
        wanted = {name: value for name, value in state.items() if name not in left_out}
        loaded = dist_checkpointing.load({"model": wanted}, str(folder))
        module.load_state_dict(loaded["model"] | left_out)


def main() -> None:
    models, converted, written = map(Path, sys.argv[1:])
    found = {}
    for layout, (sizes, families) in LAYOUTS.items():
        for family in families:
            model = policy(converted / family, sizes)
            want = tiny_conversion.tensors(models / family)
            differences = tiny_conversion.differing(exported(model), want)
            if layout != "pp2_vpp2":
                load_whole_state(model, converted / family / "release")
                differences += tiny_conversion.differing(exported(model), want)
            found[f"{layout} {family}"] = platform.gather_objects(differences)
    for layout in ("tp2", "pp2"):
        model = policy(converted / "qwen2", LAYOUTS[layout][0], trainable=True)
        for module in model.modules:
            for parameter in module.parameters():
                parameter.data.mul_(1.5)
        save_checkpoint(written / "run" / layout, model, TrainerState(12, {}), keep_last=1)
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
