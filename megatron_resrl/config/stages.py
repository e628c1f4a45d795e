"""The stages of training: the command of each, and the kind of recipe that it takes."""

from __future__ import annotations

from typing import Literal

from megatron_resrl.config.schema import Recipe, RunSettings
from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.config.schema_sft import SftRecipe

Stage = Literal["train", "sft", "pretrain"]
Command = Literal["train", "sft", "pretrain", "eval", "serve"]
"""What runs a recipe; evaluation and servers take that of `train`."""

STAGES: dict[Stage, type[RunSettings]] = {
    "train": Recipe,
    "sft": SftRecipe,
    "pretrain": PretrainRecipe,
}
"""In the order in which an unknown name is looked up; `train` is reinforcement learning."""
