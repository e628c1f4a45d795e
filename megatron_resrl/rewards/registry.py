"""Reward functions by name, or by file and name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

from megatron_resrl.config.schema_questions import CodeConfig
from megatron_resrl.errors import SettingError
from megatron_resrl.generators.reasoning_gym_tasks import LibraryMissing
from megatron_resrl.registry import Registry
from megatron_resrl.rewards.options import require_known_options, require_right_values

_REGISTRY = Registry(
    setting="reward.function",
    kind="reward function",
    built_in={
        "math": "megatron_resrl.rewards.math:math_reward",
        "integer": "megatron_resrl.rewards.integer:integer_reward",
        "multiple_choice": "megatron_resrl.rewards.multiple_choice:multiple_choice_reward",
        "code": "megatron_resrl.rewards.code:code_reward",
        "function_calling": "megatron_resrl.rewards.function_calling:function_calling_reward",
        "countdown": "megatron_resrl.rewards.countdown:countdown_reward",
        "reasoning_gym": "megatron_resrl.rewards.reasoning_gym:reasoning_gym_reward",
        "format": "megatron_resrl.rewards.response_format:format_reward",
        "length": "megatron_resrl.rewards.length:length_reward",
        "remote": "megatron_resrl.rewards.remote:RemoteReward",
        "judge": "megatron_resrl.rewards.judge:JudgeReward",
    },
    member="function",
    is_member=inspect.isfunction,
    accepts=lambda found: True,  # `load_reward` says what is wrong with a function.
)
"""The function `check_ground_truth` of a reward's module judges ground truths."""

QUICK = ("integer", "length")
"""Functions of ours that take microseconds, whatever they are given: no process guards them."""

RUNS_CODE = ("code",)
"""Functions of ours that run programs as `reward.code` says."""

ASKS_SERVERS = ("remote", "judge")
"""Rewards of ours that are no functions but a `served.ServedReward`."""

WITHOUT_ANSWERS = ("format", "length")
"""Functions of ours that look at no ground truth."""

CHECK = "check_ground_truth"
"""Name of the function, in a reward's file, that refuses ground truths."""

CHECK_COLUMNS = "check_columns"
"""Name of the function, in a module of ours, that refuses rows without the columns it reads."""

CHECK_OPTIONS = "check_options"
"""Name of the function, in a module of ours, that refuses options which do not go together."""

TOKENS = "response_tokens"
"""Argument that a function gets only if it has it: the tokens that the policy generated."""


@dataclass(frozen=True)
class FunctionPlaces:
    """Where a recipe names a function and its options, for messages."""

    name: str = "reward.function"
    options: str = "reward.options"


class RewardFunction(Protocol):
    """Judges one response."""

    def __call__(
        self, response: str, ground_truth: Any, *, prompt: str, data_source: str, extra: dict
    ) -> float:
        """Returns the score of a response.

        Args:
            response: Decoded text without special tokens.
            ground_truth: As it stands in the question's file.
            prompt: The last message of the prompt.
            data_source: Name of the dataset.
            extra: The other columns of the question's row.

        Returns:
            A finite number; above 0 means correct. Also a dictionary with such a `score`, or a
            tuple that begins with it; what else they hold is not used.
        """


@dataclass(frozen=True)
class Reward:
    """A reward function, and what it says of ground truths before there are responses."""

    function: RewardFunction
    check: Callable[[Any], None] | None
    """Raises ValueError, with what is wrong and what would be right; None: all are accepted."""
    prepare: Callable[[], None] | None = None
    """What takes long, once in each process and before its first response; None: nothing does."""
    takes_tokens: bool = False
    """The function has the argument `response_tokens`."""


def load_reward(
    name: str,
    options: Mapping[str, Any] | None = None,
    code: CodeConfig | None = None,
    places: FunctionPlaces | None = None,
) -> Reward:
    """Finds a reward function and its check of ground truths.

    Args:
        name: One of ours, or `path.py:name`. That file is run to find the function, and beside it
            `check_ground_truth(value)`, which it may have.
        options: Further keyword arguments that the function is called with.
        code: How a function of ours that runs programs does so.
        places: The settings that say so; None: `reward.function` and `reward.options`.

    Raises:
        SettingError: There is no such file or function, the file raises, or the function cannot be
            called like a
            `RewardFunction` or a `compute_score(data_source, solution_str, ground_truth,
            extra_info)`, or not with these options.
    """
    places = places or FunctionPlaces()
    registry = replace(_REGISTRY, setting=places.name)
    function, module = registry.find(name)
    options = dict(options or {})
    if name in registry.built_in:
        return _built_in(name, function, module, options, code, places)
    if _is_compute_score(function):
        function = _from_compute_score(_with_options(name, function, options, places.options))
    else:
        function = _with_options(name, function, options, places.options)
        _require_callable(name, function, registry)
    return Reward(function, getattr(module, CHECK, None), takes_tokens=_takes_tokens(function))


def _built_in(
    name: str,
    function: Any,
    module: ModuleType,
    options: dict[str, Any],
    code: CodeConfig | None,
    places: FunctionPlaces,
) -> Reward:
    require_known_options(places.options, name, function, options)
    require_right_values(places.options, name, function, options)
    own_check = function if name in ASKS_SERVERS else getattr(module, CHECK_OPTIONS, None)
    if own_check is not None:
        try:
            own = own_check(**options)
        except LibraryMissing as error:
            raise SettingError(places.name, name, error.problem, error.fix) from error
        except ValueError as error:
            problem, _, fix = str(error).rpartition(": ")
            raise SettingError(places.options, options, problem, fix) from None
    check, tokens = getattr(module, CHECK), _takes_tokens(function)
    if name in ASKS_SERVERS:
        return Reward(own, check)
    function = functools.partial(function, **options) if options else function
    if name not in RUNS_CODE:
        return Reward(function, check, getattr(module, "prepare", None), takes_tokens=tokens)
    function = functools.partial(cast(Callable[..., float], function), settings=code)
    return Reward(function, check, functools.partial(module.prepare, code))


def get_reward(name: str) -> RewardFunction:
    """Finds a reward function, see `load_reward`."""
    return load_reward(name).function


def ground_truth_check(name: str) -> Callable[[Any], None]:
    """Finds what refuses ground truths, see `Reward.check`; without one, all are accepted."""
    return load_reward(name).check or (lambda value: None)


def columns_check(name: str) -> Callable[[Mapping[str, Any]], None] | None:
    """Finds what raises ValueError for the other columns of a row; None: all are accepted."""
    if name not in _REGISTRY.built_in:
        return None
    return getattr(_REGISTRY.find(name)[1], CHECK_COLUMNS, None)


def user_folder(name: str) -> Path | None:
    """The folder of a user's file; None: a built-in function."""
    return None if name in _REGISTRY.built_in else _REGISTRY.locate(name)[0].parent


def absolute_name(name: str) -> str:
    """The same function's name, whatever the directory a process works in."""
    if name in _REGISTRY.built_in:
        return name
    file, attribute = _REGISTRY.locate(name)
    return f"{file}:{attribute}"


def _with_options(
    name: str, function: RewardFunction, options: Mapping[str, Any] | None, setting: str
) -> RewardFunction:
    """The function with its options given; a function without any stays itself."""
    if not options or not callable(function):
        return function
    require_known_options(setting, name, function, options)
    return functools.partial(function, **options)


def _takes_tokens(function: Any) -> bool:
    try:
        return TOKENS in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _is_compute_score(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return {"data_source", "solution_str", "ground_truth"} <= parameters.keys()


def _from_compute_score(function: Any) -> RewardFunction:
    """A function with verl's arguments, whose `extra_info` is the row's column of that name."""
    parameters = inspect.signature(function).parameters
    takes_extra = "extra_info" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )

    def reward(
        response: str, ground_truth: Any, *, prompt: str, data_source: str, extra: dict
    ) -> Any:
        extra_info = {"extra_info": extra.get("extra_info", extra)} if takes_extra else {}
        return function(
            data_source=data_source, solution_str=response, ground_truth=ground_truth, **extra_info
        )

    return reward


def _require_callable(name: str, function: Any, registry: Registry) -> None:
    wanted = "f(response, ground_truth, *, prompt, data_source, extra) -> float"
    if not callable(function):
        problem = f"it is of type {type(function).__name__}, not a function"
        raise registry.refusal(name, problem, f"give one like {wanted}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # Some functions written in C have no signature.
        return
    try:
        tokens = {TOKENS: 0} if _takes_tokens(function) else {}
        signature.bind("", "", prompt="", data_source="", extra={}, **tokens)
    except TypeError as error:
        problem = f"{signature} cannot be called as {wanted} ({error})"
        raise registry.refusal(name, problem, "unused arguments can go to **context") from None
