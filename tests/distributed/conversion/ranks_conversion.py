"""Two ranks load converted models, and write checkpoints as Megatron-LM and a run would.

Arguments: folder of Hugging Face models, folder of the converted ones, folder to write into.
Rank 0 prints one line of JSON: per layout and family, which exported tensors differ.
"""

from __future__ import annotations

import argparse
import enum
import json
import sys
from pathlib import Path
from typing import Any

import tiny_conversion
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state

from megatron_resrl.checkpoint.checkpoint import TrainerState, save_checkpoint
from megatron_resrl.config.schema import ModelConfig, ParallelConfig, PrecisionConfig, Recipe
from megatron_resrl.platform import distributed as platform
from megatron_resrl.policy.layer_spec import uses_transformer_engine
from megatron_resrl.policy.policy import Policy
from megatron_resrl.weights.hugging_face import export_weights

DENSE = ("llama", "qwen2")
MOE = ("qwen3_moe", "qwen3_moe_mixed")
LAYOUTS: dict[str, tuple[dict[str, int], tuple[str, ...]]] = {
    "tp2": ({"tensor_model_parallel_size": 2}, (*DENSE, "mistral", "qwen3_moe")),
    "pp2": ({"pipeline_model_parallel_size": 2}, (*DENSE, *MOE)),
    "pp2_vpp2": (
        {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
        DENSE,
    ),
    "ep2": ({"expert_model_parallel_size": 2}, (*MOE, "mixtral")),
}


class OfTheProgram(enum.Enum):
    """Pickled by the name of a module that no reader has."""

    VALUE = 1


def policy(path: Path, layout: dict[str, int], *, trainable: bool = False) -> Policy:
    recipe = Recipe(
        model=ModelConfig(str(path)),
        parallel=ParallelConfig(**layout, timeout_minutes=1.0),
        precision=PrecisionConfig("fp32"),
    )
    platform.initialize(recipe.parallel, seed=3)
    return Policy.from_recipe(recipe, trainable=trainable)


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


def save_legacy(model: Policy, folder: Path) -> None:
    """What Megatron-LM's `save_checkpoint` writes with `--ckpt-format torch`."""
    config = model.config
    tensor, pipeline, expert = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_expert_model_parallel_rank(),
    )
    name = f"mp_rank_{tensor:02d}"
    name += f"_{pipeline:03d}" if config.pipeline_model_parallel_size > 1 else ""
    name += f"_{expert:03d}" if config.expert_model_parallel_size > 1 else ""
    arguments = argparse.Namespace(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        group_query_attention=True,
        num_query_groups=config.num_query_groups,
        kv_channels=config.kv_channels,
        tensor_model_parallel_size=config.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=config.virtual_pipeline_model_parallel_size,
        expert_model_parallel_size=config.expert_model_parallel_size,
        untie_embeddings_and_output_weights=not model.hf_config.tie_word_embeddings,
        position_embedding_type=OfTheProgram.VALUE,
    )
    content: dict[str, Any] = {"args": arguments, "checkpoint_version": 3.0, "iteration": 20}
    chunks = [module.state_dict_for_save_checkpoint() for module in model.modules]
    if len(chunks) == 1:
        content["model"] = chunks[0]
    else:
        content |= {f"model{number}": chunk for number, chunk in enumerate(chunks)}
    content["rng_state"] = [{"torch_rng_state": torch.get_rng_state(), "np": OfTheProgram.VALUE}]
    path = folder / "iter_0000020" / name
    path.mkdir(parents=True)
    torch.save(content, path / "model_optim_rng.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text("20")


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
            if (
                dist.get_rank() < 2 // parallel_state.get_data_parallel_world_size()
                or "ep" in layout
            ):
                save_legacy(model, written / "legacy" / f"{layout} {family}")
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
    # The class must not be importable where the checkpoints are read.
    OfTheProgram.__module__ = "program_that_wrote_it"
    sys.modules["program_that_wrote_it"] = sys.modules[__name__]
    dist.init_process_group("gloo")
    main()
