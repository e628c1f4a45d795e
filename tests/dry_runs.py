"""Small models, as config.json alone, and their dry runs."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from te_on_cpu.suite import FOLDER
from transformers import LlamaConfig, Qwen3MoeConfig

from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.schema import Recipe
from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.config.schema_sft import SftRecipe
from megatron_resrl.planning.dry_run import dry_run
from megatron_resrl.planning.gpus import GPUS
from megatron_resrl.planning.layers import Layers
from megatron_resrl.planning.machine import Machine
from megatron_resrl.planning.records import PhaseRecord
from megatron_resrl.planning.supervised_workload import PretrainWorkload, SftWorkload
from megatron_resrl.planning.workload import Workload

_SHAPE: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, Any] = {
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}
WORKLOAD = Workload(prompt_tokens=24, response_tokens=40)
ENGINE: Layers = "transformer_engine"
SEQUENCE_TOKENS = 64
"""Of pretraining."""
PARTS = PretrainWorkload((24, 41))
"""A sequence of two documents."""
CONVERSATIONS = SftWorkload(((4, 20), (4, 16), (1, 18)), own=6)
"""Fill a packed micro-batch of 64 tokens but for one."""
GROUP_SIZE = 4
"""Responses of a group; with the micro-batches of two, a group is two of them."""
SINGLE_PASS = "algorithm.single_pass=auto"
"""A step of one pass, where the recipe has none of its conflicts."""


def write_config(folder: Path, *, experts: bool = False, **sizes: int) -> Path:
    """A folder with nothing but config.json: of a Llama, or of a Qwen3 with eight experts.

    Args:
        folder: Is made.
        experts: Which of the two.
        sizes: What is to be other than usual.
    """
    shape = _SHAPE | sizes
    config = Qwen3MoeConfig(**shape, **_EXPERTS) if experts else LlamaConfig(**shape)
    name = "Qwen3MoeForCausalLM" if experts else "LlamaForCausalLM"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": [name]}))
    return folder


def recipe_for(model: Path, *settings: str) -> Recipe:
    """Groups of 4, micro-batches of 2, two prompts with a copy for each response, and two passes
    unless `settings` say more."""
    own = (
        f"model.path={model}",
        "rollout.prompts_per_step=2",
        f"rollout.group_size={GROUP_SIZE}",
        "rollout.max_response_length=40",
        "data.max_prompt_length=24",
        "algorithm.micro_batch_size=2",
        "algorithm.single_pass=never",
        "algorithm.shared_prompts=never",
        "resrl.rank=4",
    )
    return load_recipe(None, [f"--{setting}" for setting in (*own, *settings)])


def pretraining_recipe(model: Path, *settings: str) -> PretrainRecipe:
    """Two micro-batches of two sequences for each of two replicas, unless `settings` say more."""
    own = (
        f"model.path={model}",
        f"data.sequence_length={SEQUENCE_TOKENS}",
        "batch.micro_batch_size=2",
        "batch.global_batch_size=8",
    )
    return load_recipe(None, [f"--{setting}" for setting in (*own, *settings)], PretrainRecipe)


def fine_tuning_recipe(model: Path, *settings: str) -> SftRecipe:
    """Conversations of up to 64 tokens, eight in a step unless `settings` say more."""
    own = (f"model.path={model}", "data.max_length=64", "batch.global_batch_size=8")
    return load_recipe(None, [f"--{setting}" for setting in (*own, *settings)], SftRecipe)


@functools.cache
def phases_of(
    model: Path,
    *settings: str,
    rank: int = 0,
    world_size: int = 1,
    layers: Layers = "local",
    gpu: str = "h100",
) -> dict[str, PhaseRecord]:
    """The phases of one rank, by name."""
    recipe = recipe_for(model, *settings)
    machine = Machine(layers, GPUS[gpu])
    with engine_on_path() if layers == ENGINE else contextlib.nullcontext():
        record = dry_run(recipe, rank, world_size, WORKLOAD, machine=machine)
    return {phase.name: phase for phase in record.phases}


@contextlib.contextmanager
def engine_on_path() -> Iterator[None]:
    """Transformer Engine's Python can be found while the block runs."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield
    finally:
        sys.path.remove(str(FOLDER))
