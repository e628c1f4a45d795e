"""The weightings by name, as `algorithm.weighting` and `resrl.weights` have them, or by file and
name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from megatron_resrl.config.schema import AlgorithmConfig, ResrlConfig
from megatron_resrl.errors import SettingError
from megatron_resrl.registry import Registry
from megatron_resrl.token_weighting.options import (
    OPTIONS_SETTING,
    A3POOptions,
    ControlOptions,
    FilterOptions,
    NTHROptions,
    ProbabilityOptions,
    ShearOptions,
    THROptions,
    made_options,
)

# For types alone: the checks of a recipe ask for names and need no megatron-core.
if TYPE_CHECKING:
    from megatron_resrl.token_weighting.context import WeightingContext
    from megatron_resrl.token_weighting.protocol import TokenWeighting

_PROBABILITIES = "megatron_resrl.token_weighting.probabilities"
_RESRL = "megatron_resrl.token_weighting.resrl:ResRLWeighting"
_CONTROL = "megatron_resrl.token_weighting.control:ControlWeighting"


@dataclass(frozen=True)
class WeightingEntry:
    """What is known of a weighting before it is imported."""

    place: str
    """`module:class`; the class takes a `WeightingContext`."""
    summary: str = "a weighting of the user's"
    """One line for lists."""
    source: str = ""
    """Paper that its formula is from."""
    reads_states: bool = True
    """Whether it needs hidden states of the policy."""
    of_resrl: bool = True
    """Whether `resrl.positive_weight` and `resrl.positives` belong to it."""
    only_incorrect: bool = False
    """Whether only incorrect responses get weights."""
    whole_groups: bool = False
    """Whether no token of a group has a weight before all its responses are scored."""
    options: type | None = None
    """Dataclass of its options."""


WEIGHTINGS: dict[str, WeightingEntry] = {
    "none": WeightingEntry(
        "megatron_resrl.token_weighting.fixed:Uniform",
        "every token counts as its response",
        reads_states=False,
        of_resrl=False,
    ),
    "resrl": WeightingEntry(
        _RESRL,
        "incorrect tokens by their residual to the subspace of the correct ones",
        "arXiv 2605.00380",
        only_incorrect=True,
    ),
    "constant": WeightingEntry(
        _RESRL,
        "control: one weight for all incorrect tokens of a group, with ResRL's sum",
        only_incorrect=True,
    ),
    "random": WeightingEntry(
        _RESRL,
        "control: ResRL's weights dealt to the group's incorrect tokens at random",
        only_incorrect=True,
    ),
    "inverted": WeightingEntry(_RESRL, "control: 1 + floor - ResRL's weight", only_incorrect=True),
    "shuffled": WeightingEntry(
        _CONTROL,
        "control: a weighting's weights dealt to the tokens of the same response at random",
        whole_groups=True,
        options=ControlOptions,
    ),
    "averaged": WeightingEntry(
        _CONTROL,
        "control: of a weighting's weights the mean of each response, for all of its tokens",
        whole_groups=True,
        options=ControlOptions,
    ),
    "negative_filter": WeightingEntry(
        f"{_PROBABILITIES}:NegativeFilter",
        "1 for the least likely tokens of an incorrect response, 0 for its others",
        "arXiv 2606.17250",
        reads_states=False,
        of_resrl=False,
        only_incorrect=True,
        options=FilterOptions,
    ),
    "a3po": WeightingEntry(
        f"{_PROBABILITIES}:A3PO",
        "more for the least likely tokens of correct, the most likely of incorrect responses",
        "arXiv 2512.21625; its code",
        reads_states=False,
        of_resrl=False,
        options=A3POOptions,
    ),
    "probability": WeightingEntry(
        f"{_PROBABILITIES}:Probability",
        "alpha p + 1 - alpha, p the token's probability",
        "arXiv 2505.12929",
        reads_states=False,
        of_resrl=False,
        options=ProbabilityOptions,
    ),
    "shear": WeightingEntry(
        "megatron_resrl.token_weighting.shear:ShearWeighting",
        "distance of the token's span of states to the nearest span of the other side",
        "arXiv 2604.23318",
        of_resrl=False,
        whole_groups=True,
        options=ShearOptions,
    ),
    "nthr": WeightingEntry(
        "megatron_resrl.token_weighting.nthr:NTHRWeighting",
        "eta for incorrect tokens whose penalty would lower correct responses most, else 1",
        "arXiv 2505.18830",
        of_resrl=False,
        only_incorrect=True,
        whole_groups=True,
        options=NTHROptions,
    ),
    "thr": WeightingEntry(
        "megatron_resrl.token_weighting.thr:THRWeighting",
        "[abs(THR) > tau] (1 + sign(THR) p), THR the effect on the likelihood of correct responses",
        "arXiv 2510.03669",
        of_resrl=False,
        whole_groups=True,
        options=THROptions,
    ),
}
"""A new weighting adds one entry, or stays in a file of its own."""

_OLDER_NAMES = {"residual": "resrl"}
"""As in `resrl.weights`."""


@dataclass(frozen=True)
class ChosenWeighting:
    """The weighting that a recipe names."""

    name: str
    """One of `WEIGHTINGS`, or `path.py:name`."""
    setting: str
    """Which setting names it."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """`algorithm.weighting_options`."""

    @property
    def controlled(self) -> ChosenWeighting | None:
        """The weighting that it is a control of; None: it is no control of another."""
        found = WEIGHTINGS.get(self.name)
        if found is None or found.options is not ControlOptions:
            return None
        name = str(self.given.get("of", ControlOptions.of))
        rest = {option: value for option, value in self.given.items() if option != "of"}
        return ChosenWeighting(_OLDER_NAMES.get(name, name), OPTIONS_SETTING, rest)

    @property
    def entry(self) -> WeightingEntry:
        """What is known of it; a weighting of the user's, or an unknown one, has the defaults."""
        found = WEIGHTINGS.get(self.name, WeightingEntry(self.name))
        if self.controlled is None:
            return found
        of = self.controlled.entry
        return replace(
            found,
            reads_states=of.reads_states,
            of_resrl=of.of_resrl,
            only_incorrect=of.only_incorrect,
        )

    @property
    def options(self) -> Any:
        """The options as its class wants them; of a weighting of the user's as they are given, and
        of a control the weighting that is controlled.

        Raises:
            SettingError: See `made_options`.
        """
        if self.name not in WEIGHTINGS:
            return self.given
        if self.controlled is not None:
            return self.controlled
        return made_options(self.name, self.entry.options, self.given)


def chosen_weighting(
    algorithm: AlgorithmConfig, resrl: ResrlConfig, *, weighted: bool
) -> ChosenWeighting:
    """What `algorithm.weighting` and `resrl.weights` say together.

    Args:
        algorithm: With `weighting` and `weighting_options`.
        resrl: With `weights`, which decides where `algorithm.weighting` is `auto`.
        weighted: Whether the algorithm weighs tokens by itself, as `Algorithm.weighted` says.
    """
    if algorithm.weighting != "auto":
        name, setting = algorithm.weighting, "algorithm.weighting"
    elif weighted:
        name, setting = resrl.weights, "resrl.weights"
    else:
        name, setting = "none", "algorithm.weighting"
    return ChosenWeighting(_OLDER_NAMES.get(name, name), setting, algorithm.weighting_options)


def require_weighting(chosen: ChosenWeighting) -> None:
    """Refuses a name; a user's file is run to see what it has.

    Raises:
        SettingError: There is no such weighting or file, the class in it is no weighting, or an
            option cannot be used.
    """
    if chosen.controlled is not None:
        if chosen.controlled.controlled is not None:
            problem, fix = "a control cannot be controlled", "name another weighting as `of`"
            raise SettingError(OPTIONS_SETTING, dict(chosen.given), problem, fix)
        require_weighting(chosen.controlled)
    elif chosen.name in WEIGHTINGS:
        _ = chosen.options
    else:
        _find_class(chosen)


def get_weighting(chosen: ChosenWeighting, context: WeightingContext) -> TokenWeighting:
    """Builds a weighting.

    Raises:
        SettingError: See `require_weighting`.
    """
    return _find_class(chosen)(context)


def _find_class(chosen: ChosenWeighting) -> Any:
    registry = Registry(
        setting=chosen.setting,
        kind="token weighting",
        built_in={name: entry.place for name, entry in WEIGHTINGS.items()},
        member="class",
        is_member=inspect.isclass,
        accepts=inspect.isclass,
    )
    found, _ = registry.find(chosen.name)
    lacks = [each for each in ("begin", "summarise") if not callable(getattr(found, each, None))]
    lacks += sorted(getattr(found, "__abstractmethods__", ()))
    if lacks:
        problem = f"{found.__name__} does not define {', '.join(lacks)}"
        raise registry.refusal(chosen.name, problem, "define it, see TokenWeighting")
    return found
