"""What the conversion tests share: tiny models as transformers saves them, and comparisons."""

from __future__ import annotations

from pathlib import Path

import tiny_families as tiny
import torch
from safetensors.torch import load_file

CONVERTED = {
    "llama": (4, 1),
    "qwen2": (2, 2),
    "mistral": (1, 2),
    "qwen3_moe": (2, 1),
    "qwen3_moe_mixed": (1, 4),
    "mixtral": (2, 1),
    "gemma3": (2, 2),
}
"""Families that ranks load, and the sizes (TP, PP) that they are converted with."""


def save_typed(source: Path, target: Path, dtype: torch.dtype, shard: str = "30KB") -> Path:
    """Saves a model again with transformers: in `dtype`, in several files, with its tokenizer."""
    model = tiny.read_model(source).to(dtype)
    model.save_pretrained(target, max_shard_size=shard)
    tiny.tokenizer().save_pretrained(target)
    return target


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a directory's safetensors files."""
    files = sorted(directory.glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Names that only one has, or whose dtype, shape or any bit differs."""
    return sorted(
        name
        for name in first.keys() | second.keys()
        if name not in first
        or name not in second
        or first[name].dtype != second[name].dtype
        or not torch.equal(first[name], second[name])
    )
