"""Models of a given shape, made on the spot: numbers that no test compares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config

from megatron_resrl.policy.batches import TokenSequence
from megatron_resrl.policy.families import find_family


@dataclass(frozen=True)
class Shape:
    """A model and a batch for it."""

    config: dict[str, Any]
    """Fields of `Qwen3Config`."""
    sequences: int
    prompt: int
    response: int
    decoded_rows: int
    decoded_tokens: int

    @property
    def tokens(self) -> int:
        """Of the batch."""
        return self.sequences * (self.prompt + self.response)

    def draw(self) -> list[TokenSequence]:
        """The batch, of random tokens."""
        generator = torch.Generator().manual_seed(0)
        size = (self.sequences, self.prompt + self.response)
        rows = torch.randint(3, self.config["vocab_size"], size, generator=generator).tolist()
        return [TokenSequence(tuple(row[: self.prompt]), tuple(row[self.prompt :])) for row in rows]


_HEADS = {"head_dim": 128, "num_attention_heads": 16, "num_key_value_heads": 8}
QWEN3_1_7B = Shape(
    {
        **_HEADS,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    sequences=8,
    prompt=1024,
    response=3072,
    decoded_rows=64,
    decoded_tokens=128,
)
TINY = Shape(
    QWEN3_1_7B.config
    | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 512}
    | {"head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    sequences=2,
    prompt=16,
    response=48,
    decoded_rows=4,
    decoded_tokens=4,
)


def write_model(folder: Path, shape: Shape, device: torch.device) -> dict[str, torch.Size]:
    """Saves a model of this shape with random weights in bf16; `device` makes the numbers.

    Returns:
        The sizes of its tensors.
    """
    config = Qwen3Config(**shape.config, architectures=["Qwen3ForCausalLM"], dtype="bfloat16")
    config.save_pretrained(folder)
    tensors = {}
    torch.manual_seed(0)
    for name, size in find_family(config.to_dict()).tensors().items():
        tensor = torch.ones(size, dtype=torch.bfloat16, device=device)
        tensors[name] = tensor if name.endswith("norm.weight") else tensor.normal_(std=0.02)
    save_file(tensors, folder / "model.safetensors")
    return {name: tensor.shape for name, tensor in tensors.items()}
