"""How a command that runs a recipe begins on every rank: log, checks, libraries."""

from __future__ import annotations

import contextlib
import logging
import os
import typing
from typing import Any, Literal, TypeVar

from megatron_resrl.checks.recipe import require_valid
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.schema import Recipe, RunSettings
from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.config.schema_rollout import RolloutConfig
from megatron_resrl.config.stages import Command, Stage
from megatron_resrl.observe.log_format import log_as_json
from megatron_resrl.platform.launch import rank_variables, require_meeting_place
from megatron_resrl.platform.places import own_place
from megatron_resrl.user_files import split_name

R = TypeVar("R", bound=RunSettings)


@typing.overload
def start(path: str | None, overrides: list[str], command: Literal["train", "eval"]) -> Recipe: ...


@typing.overload
def start(path: str | None, overrides: list[str], command: Stage, kind: type[R]) -> R: ...


def start(
    path: str | None, overrides: list[str], command: Command, kind: type[RunSettings] = Recipe
) -> RunSettings:
    """Begins the log and returns a recipe that can be run. Rank 0 logs; others only warn.

    Args:
        path: Of the recipe.
        overrides: Settings of the command line.
        command: What is going to run the recipe.
        kind: Of the recipe.

    Raises:
        RecipeError: With everything that is wrong with the recipe on this machine.
        InputError: The launcher's variables cannot be used.
    """
    os.environ |= rank_variables(os.environ)
    level = logging.INFO if rank_name() == "" else logging.WARNING
    logging.basicConfig(level=level, format=f"%(asctime)s {rank_name()}%(message)s")
    logging.getLogger("megatron").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # It says every request.
    recipe = load_recipe(path, overrides, kind)
    if recipe.logging.format == "json":
        log_as_json()
    prepare_megatron(recipe)
    notes = require_valid(recipe, int(os.environ.get("WORLD_SIZE", "1")), command)
    require_meeting_place(os.environ)
    if rank_name() == "":
        for note in notes:
            logging.getLogger(__name__).warning("%s", note)
    _adapt()
    from megatron_resrl.platform.libraries import prepare_libraries

    # Without rollouts no server shares the GPUs, as with the embedded engine.
    rollout = recipe.rollout if isinstance(recipe, Recipe) else RolloutConfig()
    prepare_libraries(recipe.precision, rollout)
    return recipe


def activity() -> contextlib.AbstractContextManager[Any]:
    """Rank 0 says what it does where it takes long."""
    from megatron_resrl.observe.activity import Activity

    return Activity() if rank_name() == "" else contextlib.nullcontext()


def prepare_megatron(recipe: RunSettings, *, reads_files: bool = True) -> None:
    """Adapts megatron-core if the checks are going to import it, which takes seconds.

    Args:
        recipe: To be checked.
        reads_files: Whether they read more than the model's config.json.
    """
    passed_through = recipe.model.megatron or recipe.optimizer.megatron or recipe.parallel.ddp
    reads_tokens = isinstance(recipe, PretrainRecipe)
    own_weighting = isinstance(recipe, Recipe) and any(
        map(split_name, (recipe.resrl.weights, recipe.algorithm.weighting))
    )
    if passed_through or (reads_files and (reads_tokens or own_weighting)):
        _adapt()


def rank_name() -> str:
    """What messages of this rank begin with; empty on rank 0."""
    place = own_place()
    return f"{place}: " if place.rank else ""


def _adapt() -> None:
    """Before anything imports megatron-core, which warns of what a CPU lacks when imported."""
    from megatron_resrl.platform.cpu import adapt_megatron_core

    adapt_megatron_core()
