"""Tasks of the library reasoning-gym: questions, and verifiers of answers.

Source: https://github.com/open-thought/reasoning-gym (arXiv 2505.24760).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from collections.abc import Mapping
from typing import Any

from megatron_resrl.errors import InputError, closest
from megatron_resrl.generators.exact_json import from_json

COMPOSITE = "composite"
"""The task that draws from several others."""
_OF_GENERATOR = ("seed", "size")
"""Fields of every task's configuration that a generator says itself."""
_OF_PART = ("name", "weight", "config")
"""Keys of a task in the option `datasets` of `COMPOSITE`."""
_EXAMPLE = "datasets: [{name: leg_counting, weight: 2}, {name: chain_sum, config: {max_terms: 4}}]"


class _Explained(Exception):
    """An error in two parts.

    Args:
        problem: What is wrong.
        fix: What would be right.
    """

    def __init__(self, problem: str, fix: str) -> None:
        self.problem, self.fix = problem, fix
        super().__init__(f"{problem}; {fix}")


class TaskError(_Explained, ValueError):
    """A task that there is not, or options that it does not take."""


class LibraryMissing(_Explained, InputError):
    """The library is not installed."""


def require_library() -> None:
    """Imports reasoning-gym, so that nothing later has to wait for it.

    Raises:
        LibraryMissing: It is not installed.
    """
    _library()


def make_task(name: str, options: Mapping[str, Any], *, seed: int, size: int) -> Any:
    """Makes a task of the library.

    Args:
        name: Of the library's.
        options: Fields of the task's configuration.
        seed: Question i depends on `seed` + i, in most tasks on this sum alone.
        size: Number of questions.

    Returns:
        A `reasoning_gym.dataset.ProceduralDataset`.

    Raises:
        TaskError: There is no such task, or it does not take these options.
        LibraryMissing: The library is not installed.
    """
    config = _config_class(name)
    _require_fields(name, options)
    given = dict(options)
    if name == COMPOSITE:
        given["datasets"] = _parts(options.get("datasets"))
    try:
        return _library().create_dataset(name, **given, seed=seed, size=size)
    except Exception as error:  # The tasks of the library raise all kinds of them.
        problem = f"the task {name} refuses them ({type(error).__name__}: {error})"
        fields = ", ".join(_fields(config))
        raise TaskError(problem, f"correct them; its options are {fields or 'none'}") from error


def source_of(name: str, entry: Mapping[str, Any]) -> str:
    """The task that a question is of: of a composite the one that was drawn."""
    return str(entry["metadata"].get("source_dataset", name)) if name == COMPOSITE else name


def options_of(name: str, options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The options of one task, out of those of the task or composite that it belongs to."""
    if name != COMPOSITE:
        return dict(options)
    return next(
        dict(each.get("config") or {}) for each in options["datasets"] if each["name"] == source
    )


def score(name: str, options: str, answer: str, entry: dict[str, Any]) -> float:
    """What the task's own verifier gives an answer.

    Args:
        name: Of the task.
        options: Those that its questions were made with, see `exact_json`: some verifiers look at
            them.
        answer: Of a response.
        entry: `answer` and `metadata` as the task made them.

    Raises:
        Exception: Whatever the verifier raises.
    """
    return float(_verifier(name, options).score_answer(answer, entry))


@functools.lru_cache(maxsize=64)
def _verifier(name: str, options: str) -> Any:
    return make_task(name, from_json(options), seed=0, size=1)


def _library() -> Any:
    try:
        import reasoning_gym.composite
        import reasoning_gym.factory
    except ImportError as error:
        raise LibraryMissing(
            f"reasoning-gym cannot be imported ({error})",
            "install it: pip install 'megatron-resrl[reasoning-gym]'",
        ) from error
    return reasoning_gym


def _config_class(name: str) -> type[Any]:
    tasks = _library().factory.DATASETS
    if name not in tasks:
        near = closest(name, tasks)
        version = importlib.metadata.version("reasoning-gym")
        fix = f"did you mean {near}?" if near else f"it has {', '.join(sorted(tasks))}"
        raise TaskError(f"reasoning-gym {version} has no task {name!r}", fix)
    config: type[Any] = tasks[name][1]
    return config


def _fields(config: type[Any]) -> list[str]:
    return [each.name for each in dataclasses.fields(config) if each.name not in _OF_GENERATOR]


def _require_fields(name: str, options: Mapping[str, Any]) -> None:
    known = _fields(_config_class(name))
    for option in options:
        if option in _OF_GENERATOR:
            raise TaskError(f"{option!r} is no option of a task", f"give {option} to the generator")
        if option not in known:
            near = closest(str(option), known)
            fix = f"did you mean {near}?" if near else f"it has {', '.join(known) or 'none'}"
            raise TaskError(f"the task {name} has no option {option!r}", fix)


def _parts(entries: Any) -> list[Any]:
    """The tasks of a composite as the library takes them."""
    if not isinstance(entries, (list, tuple)) or not entries:
        raise TaskError(f"{COMPOSITE} has no tasks", f"give {_EXAMPLE}")
    specs = []
    for entry in entries:
        unknown = [key for key in entry if key not in _OF_PART] if isinstance(entry, dict) else []
        if not isinstance(entry, dict) or unknown or not isinstance(entry.get("name"), str):
            raise TaskError(f"{entry!r} is no task of {COMPOSITE}", f"give {_EXAMPLE}")
        name, config = entry["name"], entry.get("config") or {}
        weight = entry.get("weight", 1.0)
        if name == COMPOSITE or not isinstance(config, dict):
            raise TaskError(f"{entry!r} is no task of {COMPOSITE}", f"give {_EXAMPLE}")
        if type(weight) not in (int, float) or not weight > 0:
            raise TaskError(f"the weight of {name} is {weight!r}", "give a number above 0")
        _require_fields(name, config)
        specs.append(_library().composite.DatasetSpec(name, float(weight), config))
    return specs
