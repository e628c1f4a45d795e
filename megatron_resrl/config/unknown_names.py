"""What a name that is no setting was meant to be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from megatron_resrl.config.foreign_names import hint
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.recipe_schema import RecipeSchema, schema_of
from megatron_resrl.config.stages import STAGES, Stage
from megatron_resrl.errors import closest

_ALIKE, _VERY_ALIKE = 0.7, 0.8
"""How similar a name must be to be the one that was meant: in its own section, and elsewhere."""


def likely_stage(content: dict[Any, Any], options: Sequence[str]) -> Stage | None:
    """The stage whose recipes have more of the names in a recipe than those of any other stage.

    Args:
        content: Of the recipe, nested.
        options: Dotted names on the command line.
    """
    schemas = {stage: schema_of(kind) for stage, kind in STAGES.items()}
    names = [*_names(content, {name for each in schemas.values() for name in each.sections})]
    known = {
        stage: sum(
            name in schema.settings or schema.mapping_above(name) is not None
            for name in (*names, *options)
        )
        for stage, schema in schemas.items()
    }
    most = max(known.values())
    best = [stage for stage, count in known.items() if count == most]
    return best[0] if len(best) == 1 else None


def _names(content: dict[Any, Any], sections: set[str], prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings in a recipe's nested content."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if name in sections and isinstance(value, dict):
            yield from _names(value, sections, f"{name}.")
        else:
            yield name


def unknown_setting(
    schema: RecipeSchema, name: str, value: Any, place: str, likely: Stage | None = None
) -> Problem:
    """Looks for the meant setting in the same section first, then everywhere.

    Args:
        schema: Of the recipe.
        name: That no setting of it has.
        value: What was given.
        place: Where.
        likely: Whose recipe it looks like, see `likely_stage`.
    """
    if problem := _of_another_stage(schema, name, value, place, likely):
        return problem
    settings, sections = schema.settings, schema.sections
    section, _, leaf = name.rpartition(".")
    own = schema.members(section) or schema.members("")
    members = [member.rpartition(".")[2] for member in own]
    same_leaf = [setting for setting in settings if setting.rpartition(".")[2] == leaf]
    leaves = {setting.rpartition(".")[2]: setting for setting in settings}
    known = section in ("", *sections)
    prefix = f"{section}." if section else ""
    # `model.name` is not `algorithm.name`, while `optimizer.group_size` can only be one thing.
    telling = not known or "_" in leaf or leaf in settings
    if known and (near := closest(leaf, members, _VERY_ALIKE)):
        fix = f"did you mean {prefix}{near}?"
    elif foreign := hint(name, settings):
        fix = foreign
    elif same_leaf and (telling or not section):
        fix = f"did you mean {closest(name, same_leaf, 0)}?"
    elif known and (near := closest(leaf, members, _ALIKE)):
        fix = f"did you mean {prefix}{near}?"
    elif telling and (near := closest(leaf, leaves, _VERY_ALIKE)):
        fix = f"did you mean {leaves[near]}?"
    elif near := closest(leaf, [*settings, *sections], _VERY_ALIKE):
        fix = f"did you mean {near}?"
    elif section in sections:
        fix = f"{section} has {', '.join(members)}"
    else:
        fix = f"a recipe has the settings {', '.join(schema.members(''))}"
    return Problem(name, value, f"there is no such setting ({place})", fix)


def _of_another_stage(
    schema: RecipeSchema, name: str, value: Any, place: str, likely: Stage | None
) -> Problem | None:
    """A setting, or section, that recipes of other commands have."""
    having = [
        stage
        for stage, kind in STAGES.items()
        if name in (other := schema_of(kind)).settings or name in other.sections
    ]
    if not having:
        return None
    own = next(stage for stage, kind in STAGES.items() if kind is schema.recipe)
    kind = "section" if isinstance(value, dict) else "setting"
    problem = f"it is a {kind} of {' and '.join(having)}, not of {own} ({place})"
    if likely in having:
        fix = (
            f"this looks like a recipe of {likely}: run megatron-resrl {likely} (check and plan: "
            f"--stage {likely}), or take it out"
        )
    else:
        fix = f"run megatron-resrl {having[0]}, or take it out"
    return Problem(name, value, problem, fix)
