"""A recipe's servers: the model that they need, and how they are started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_resrl.config.schema import Recipe
from megatron_resrl.rollout.serving.launch import ServerPlace, server_specs
from megatron_resrl.rollout.serving.needed_model import NeededModel
from megatron_resrl.rollout.serving.server import ServerSpec


def needed_model(recipe: Recipe) -> NeededModel:
    return NeededModel.of(recipe.model, recipe.precision, recipe.data, recipe.rollout)


def specs_of(
    recipe: Recipe,
    *,
    cuda: bool = False,
    weight_flags: tuple[Sequence[str], Mapping[str, str]] = ((), {}),
    api_key: str | None = None,
    gpus: Sequence[str] | None = None,
    place: ServerPlace | None = None,
) -> list[ServerSpec]:
    return server_specs(
        needed_model(recipe),
        recipe.vllm,
        output_dir=Path(recipe.output_dir),
        colocated=recipe.rollout.placement == "colocated",
        cuda=cuda,
        weight_flags=weight_flags,
        api_key=api_key,
        gpus=gpus,
        place=place,
    )
