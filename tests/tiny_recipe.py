"""A tiny Hugging Face model with tokenizer and questions on disk, and a recipe that uses them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
)

from megatron_resrl.policy.families import find_family

CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


_SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def write_model(directory: Path, *, experts: bool = False) -> Path:
    """Saves a random two-layer model with 64 tokens and 128 positions, and its tokenizer.

    A Llama, or a Qwen3 with four experts.
    """
    torch.manual_seed(0)
    config = Qwen3MoeConfig(**_SHAPE, **_EXPERTS, head_dim=8) if experts else LlamaConfig(**_SHAPE)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    words = {"<s>": 0, "</s>": 1, "<pad>": 2, **{str(n): n for n in range(3, 64)}}
    model = Tokenizer(WordLevel(words, unk_token="<pad>"))
    model.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory


def write_zeros(directory: Path) -> None:
    """Replaces a model's weights by zeros of the shapes that its config.json asks for."""
    config = json.loads((directory / "config.json").read_text())
    shapes = find_family(config).tensors()
    zeros = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_file(zeros, directory / "model.safetensors")


def change_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; None removes a key."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def write_settings(path: Path, recipe: dict[str, Any], overrides: Mapping[str, object]) -> Path:
    """Writes a recipe as YAML.

    Args:
        path: Of the file.
        recipe: Settings, or sections of them; changed in place.
        overrides: Dotted settings with "__" for ".", e.g. `rollout__group_size`.

    Returns:
        `path`.
    """
    for name, value in overrides.items():
        section, _, setting = name.partition("__")
        if setting:
            recipe.setdefault(section, {})[setting] = value
        else:
            recipe[section] = value
    path.write_text(yaml.safe_dump(recipe))
    return path


def write_recipe(directory: Path, model: Path) -> Path:
    """Writes questions and a recipe for one rank that has no problems."""
    questions = directory / "train.jsonl"
    questions.write_text('{"prompt": "3", "answer": "4"}\n{"prompt": "5", "answer": "6"}\n')
    recipe = directory / "recipe.yaml"
    recipe.write_text(
        f"""\
output_dir: {directory / "run"}
steps: 2
model:
  path: {model}
data:
  train_files: [{questions}]
  max_prompt_length: 16
rollout:
  prompts_per_step: 4
  group_size: 2
  max_response_length: 16
optimizer:
  lr: 1e-5
"""
    )
    return recipe
