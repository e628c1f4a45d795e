"""Options of the weightings of the package (`algorithm.weighting_options`); no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from megatron_resrl.config.ranges import (
    POSITIVE_SHARE,
    PROBABILITY,
    above,
    at_least,
    between,
    field_ranges,
    range_problem,
)
from megatron_resrl.errors import SettingError, closest

OPTIONS_SETTING = "algorithm.weighting_options"


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """Of `negative_filter`."""

    keep: Annotated[float, POSITIVE_SHARE] = 0.1
    """Share of an incorrect response's tokens that are punished (paper: 0.1)."""


@dataclass(frozen=True, kw_only=True)
class A3POOptions:
    """Of `a3po`; defaults are the example of its repository."""

    share: Annotated[float, POSITIVE_SHARE] = 0.2
    """Share of a response's tokens that are scaled."""
    positive_scale: Annotated[float, at_least(0)] = 5.0
    """Weight of the least likely tokens of correct responses."""
    negative_scale: Annotated[float, at_least(0)] = 5.0
    """Weight of the most likely tokens of incorrect responses."""


@dataclass(frozen=True, kw_only=True)
class ProbabilityOptions:
    """Of `probability`."""

    alpha: Annotated[float, PROBABILITY] = 0.2
    """How much less a token of probability 0 counts than one of probability 1 (its code: 0.2)."""


@dataclass(frozen=True, kw_only=True)
class ShearOptions:
    """Of `shear`."""

    span: Annotated[int, at_least(1)] = 100
    """Tokens of a span (paper: 100)."""
    stride: Annotated[int, at_least(1)] = 25
    """Tokens from the start of a span to that of the next (paper: 25); at most `span`."""
    epsilon: Annotated[float, above(0)] = 0.05
    """Weight of the entropy in the distance, as a multiple of the group's mean norm of states."""
    iterations: Annotated[int, at_least(1)] = 50
    """Of Sinkhorn's algorithm."""

    def __post_init__(self) -> None:
        """Checks what ranges cannot say.

        Raises:
            ValueError: Tokens would be in no span.
        """
        if self.stride > self.span:
            raise ValueError(f"stride is {self.stride}; it must be at most span, {self.span}")


@dataclass(frozen=True, kw_only=True)
class ControlOptions:
    """Of `shuffled` and `averaged`, which take the options of the weighting beside it."""

    of: str = "resrl"
    """The weighting that is controlled."""


@dataclass(frozen=True, kw_only=True)
class NTHROptions:
    """Of `nthr`."""

    beta: Annotated[float, at_least(0)] = 1.0
    """Factor of the threshold above which tokens are selected (paper: 1)."""
    eta: Annotated[float, PROBABILITY] = 0.0
    """Weight of the tokens that are selected (paper's experiments: 0)."""


@dataclass(frozen=True, kw_only=True)
class THROptions:
    """Of `thr`."""

    p: Annotated[float, between(-1, 1)] = 0.1
    """How much more tokens count that make correct responses likelier, and how much less the others
    (paper: 0.1 for exploitation, -0.1 for exploration)."""
    threshold: Annotated[float, at_least(0)] = 1.0
    """Factor of the threshold below which tokens do not count."""


def made_options(name: str, kind: type | None, given: Mapping[str, Any]) -> Any:
    """The options of a weighting as its class wants them.

    Args:
        name: Of the weighting.
        kind: One of the classes above; None: there are none.
        given: `algorithm.weighting_options`.

    Raises:
        SettingError: An unknown option, with the nearest one, or a value that cannot be used.
    """
    ranges = {} if kind is None else field_ranges(kind)

    def refusal(problem: str, fix: str) -> SettingError:
        return SettingError(OPTIONS_SETTING, dict(given), problem, fix)

    for option, value in given.items():
        if option not in ranges:
            near = closest(str(option), ranges)
            problem = f"it has {option!r}{f', did you mean {near!r}?' if near else ''}"
            raise refusal(problem, f"{name} takes: {', '.join(ranges) or 'no options'}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise refusal(f"{option} is not a number", f"it must be {ranges[option]}")
        if found := range_problem(value, ranges[option]):
            raise refusal(f"{option} is {found[0]}", found[1])
        default = getattr(kind, option)
        if isinstance(default, int) and not isinstance(value, int):
            raise refusal(f"{option} is not a whole number", f"use e.g. {default}")
    if kind is None:
        return None
    try:
        return kind(**given)
    except ValueError as error:
        problem, _, fix = str(error).partition("; ")
        raise refusal(problem, fix) from None
