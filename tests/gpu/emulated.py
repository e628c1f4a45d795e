"""Log-probabilities and gradient norm of a model on Transformer Engine's layers.

A process without a GPU runs this file with Transformer Engine's compiled functions answered in
torch. Arguments: folder of the model, file for the numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tiny_scoring import SEQUENCES, score, update

from megatron_resrl.config.load import load_recipe
from megatron_resrl.platform.distributed import initialize, shutdown
from megatron_resrl.rollout.worker import build_policy

SETTINGS = {
    "bf16": (),
    "bf16_packed": ("--algorithm.sequence_packing=true",),
    "tensorwise": ("--precision.fp8=hybrid", "--precision.fp8_recipe=tensorwise"),
    "delayed": ("--precision.fp8=hybrid", "--precision.fp8_recipe=delayed"),
}


def numbers(model: Path, settings: tuple[str, ...]) -> tuple[torch.Tensor, float]:
    """Log-probabilities of `SEQUENCES` [n] and the gradient norm of a step on them."""
    given = (f"--model.path={model}", "--precision.params_dtype=bf16", *settings)
    recipe = load_recipe(None, given)
    initialize(recipe.parallel, 0)
    policy = build_policy(recipe)
    return score(policy, SEQUENCES), update(policy, SEQUENCES)[0].grad_norm


def main() -> None:
    found = {name: numbers(Path(sys.argv[1]), settings) for name, settings in SETTINGS.items()}
    torch.save(found, sys.argv[2])
    shutdown()


if __name__ == "__main__":
    main()
