"""The teacher of a distillation: there is one, and the policy can learn from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_resrl.checks.facts import Check, Facts
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import Recipe
from megatron_resrl.config.schema_teacher import TeacherConfig
from megatron_resrl.errors import InputError, SettingError
from megatron_resrl.weights.config_json import read_config

_OF_NO_WEIGHT = (
    *("transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings"),
)
"""Keys of config.json that change no logits."""
_SHOWN = 4


def _check_teacher(recipe: Recipe) -> Iterator[Problem]:
    from megatron_resrl.algorithms import get_algorithm_class  # It imports torch.

    teacher, name = recipe.teacher, recipe.algorithm.name
    try:
        needed = get_algorithm_class(name).needs_teacher
    except SettingError:
        return  # The checks of the algorithm say so.
    given = [each for each in ("path", "url") if getattr(teacher, each) is not None]
    if not needed:
        for each in given:
            problem = f"{name} has no teacher"
            fix = "leave it out, or use algorithm.name: distillation"
            yield Problem(f"teacher.{each}", getattr(teacher, each), problem, fix)
    elif len(given) != 1:
        problem = f"{name} needs one teacher, and {' and '.join(given) or 'nothing'} is given"
        yield Problem("teacher.path", teacher.path, problem, "give either it or teacher.url")
    elif teacher.url is not None:
        yield from _check_server(teacher, recipe.rollout.temperature)


def _check_server(teacher: TeacherConfig, temperature: float) -> Iterator[Problem]:
    if not (teacher.url or "").startswith(("http://", "https://")):
        fix = "use e.g. http://host:8000/v1"
        yield Problem("teacher.url", teacher.url, "not an address of HTTP", fix)
    if temperature != 1:
        problem = "a server's log-probabilities of given tokens are those at temperature 1"
        fix = "use 1.0, or a teacher.path"
        yield Problem("rollout.temperature", temperature, problem, fix)


def _check_frozen(facts: Facts) -> Iterator[Problem]:
    """Its weights take the policy's place: all that is not a weight has to be the same."""
    path = facts.recipe.teacher.path
    if path is None or not facts.hf_config:
        return

    def wrong(problem: str, fix: str) -> Problem:
        return Problem("teacher.path", path, problem, fix)

    fix = "give the directory of a model in one of the formats of model.path"
    if not Path(path).is_dir():
        yield Problem("teacher.path", path, "there is no such directory", fix, "machine")
        return
    try:
        found = read_config(path, facts.recipe.model.tokenizer_path)
    except (InputError, ValueError) as error:
        yield wrong(str(error), fix)
        return
    if not isinstance(found, dict):
        yield wrong("it has no config.json", fix)
        return
    own = facts.hf_config
    keys = sorted((found.keys() | own.keys()) - set(_OF_NO_WEIGHT))
    others = [key for key in keys if _differ(found.get(key), own.get(key))]
    if others:
        told = ", ".join(f"{key} {found.get(key)!r}" for key in others[:_SHOWN])
        ours = ", ".join(f"{own.get(key)!r}" for key in others[:_SHOWN])
        problem = f"its config.json has {told} where the policy's has {ours}"
        yield wrong(problem, "serve a model of another kind with vLLM and give teacher.url")


def _differ(first: Any, second: Any) -> bool:
    """Whether two values of config.json mean something else; a key may be left out or null."""
    return first != second and not (first in (None, False) and second in (None, False))


TEACHER_CHECKS: tuple[Check, ...] = (
    lambda facts: _check_teacher(facts.recipe),
    _check_frozen,
)
"""Of the section `teacher`."""
