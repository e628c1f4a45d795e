"""Options of the reward functions of the package, held against their signatures."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from megatron_resrl.config.ranges import Range, range_problem
from megatron_resrl.errors import SettingError, closest

GIVEN = {
    *("response", "ground_truth", "prompt", "data_source", "extra"),
    *("solution_str", "extra_info", "settings", "response_tokens"),
}
"""Arguments that the grader passes, which no option may replace."""


def require_known_options(
    setting: str, name: str, function: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    """Refuses options that a reward function does not take.

    Args:
        setting: Dotted name of the options, for messages.
        name: Of the function.
        function: With its options as keyword arguments.
        options: As a recipe has them.

    Raises:
        SettingError: An unknown option, with the nearest one.
    """
    parameters = inspect.signature(function).parameters.values()
    own = _own_options(function)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    for option in options:
        if option in GIVEN or not (takes_any or option in own):
            near = closest(str(option), own)
            fix = f"did you mean {near}?" if near else f"its own are {', '.join(own) or 'none'}"
            problem = f"the function {name} takes no option {option!r}"
            raise SettingError(setting, dict(options), problem, fix)


def require_right_values(
    setting: str, name: str, function: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    """Refuses values that do not fit the annotations of a function of ours, and missing options.

    Arguments as for `require_known_options`.

    Raises:
        SettingError: An option has another type or is out of its range, or one is missing that
            has no default.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    for option, value in options.items():
        if wrong := _wrong_with(value, hints[option]):
            problem, fix = wrong
            raise SettingError(setting, dict(options), f"{option} is {value!r}, {problem}", fix)
    for option, parameter in _own_options(function).items():
        if parameter.default is parameter.empty and option not in options:
            problem, fix = f"the function {name} needs the option {option}", f"give {option}"
            raise SettingError(setting, dict(options), problem, fix)


def _own_options(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {
        each.name: each
        for each in inspect.signature(function).parameters.values()
        if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD) and each.name not in GIVEN
    }


def _wrong_with(value: Any, hint: Any) -> tuple[str, str] | None:
    """Why a value does not fit a type, and what would; None: it does."""
    if typing.get_origin(hint) is Annotated:
        inner, *extras = typing.get_args(hint)
        if wrong := _wrong_with(value, inner):
            return wrong
        ranges = [each for each in extras if isinstance(each, Range)]
        return next(filter(None, (range_problem(value, each) for each in ranges)), None)
    return None if _fits(value, hint) else ("which is of another type", f"give {_words(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return value in arguments
    if isinstance(hint, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if hint is float:
        return type(value) in (int, float)
    if typing.get_origin(hint) is dict:
        return isinstance(value, dict)
    return hint is Any or type(value) is hint


def _words(hint: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if isinstance(hint, types.UnionType):
        return " or ".join(_words(each) for each in typing.get_args(hint))
    return names.get(hint, "null" if hint is type(None) else "a mapping")
