"""A tiny run of pretraining: a model's configuration, token files and a recipe."""

from __future__ import annotations

from pathlib import Path

import numpy
from tiny_recipe import change_json, write_model, write_settings
from token_files import build

VOCABULARY = 64
LENGTH = 16
"""Tokens of a sequence."""


def documents(count: int = 40, seed: int = 0, longest: int = 60) -> list[list[int]]:
    """Documents of 2 to `longest` tokens that count upwards from a random token, so that a model
    can learn them."""
    generator = numpy.random.default_rng(seed)
    starts = generator.integers(3, VOCABULARY, count)
    lengths = generator.integers(2, longest + 1, count)
    return [
        [3 + (int(start) + step) % (VOCABULARY - 3) for step in range(int(length))]
        for start, length in zip(starts, lengths, strict=True)
    ]


def write_tokens(directory: Path, name: str = "text", *, seed: int = 0, count: int = 40) -> Path:
    """Writes token files; returns their prefix."""
    return build(directory / name, documents(count, seed), VOCABULARY)


def write_pretraining(directory: Path, *, experts: bool = False, **overrides: object) -> Path:
    """Writes a model without weights, token files and a recipe of four small steps.

    Args:
        directory: Gets everything; runs go to `directory / "run"`.
        experts: The model is a mixture of experts.
        overrides: Dotted settings with "__" for ".", e.g. `batch__global_batch_size=8`.

    Returns:
        The recipe.
    """
    model = write_model(directory / "model", experts=experts)
    (model / "model.safetensors").unlink()
    # The output matrix of its own, as in most models that are pretrained.
    change_json(model / "config.json", tie_word_embeddings=False)
    recipe: dict = {
        "output_dir": str(directory / "run"),
        "steps": 4,
        "seed": 3,
        "model": {"path": str(model)},
        "precision": {"params_dtype": "fp32"},
        "data": {"train_files": [str(write_tokens(directory))], "sequence_length": LENGTH},
        "batch": {"global_batch_size": 4, "micro_batch_size": 2},
        "optimizer": {"lr": 1e-2, "lr_warmup_steps": 0},
        "checkpoint": {"save_every": 2},
        "logging": {"tensorboard": False, "progress_bar": False},
    }
    return write_settings(directory / "recipe.yaml", recipe, overrides)
