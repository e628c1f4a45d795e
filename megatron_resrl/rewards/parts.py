"""The functions that a reward is made of: one, or several with weights and rows of their own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from megatron_resrl.config.schema import RewardConfig
from megatron_resrl.errors import SettingError, closest
from megatron_resrl.rewards.registry import FunctionPlaces

SETTING = "reward.functions"
_KEYS = ("name", "weight", "options", "data_sources")
_EXAMPLE = "[{name: math, data_sources: [gsm8k]}, {name: format, weight: 0.1}]"


@dataclass(frozen=True)
class Part:
    """One function of a reward."""

    name: str
    """See `load_reward`."""
    weight: float = 1.0
    """Factor of its score in the reward."""
    options: Mapping[str, Any] = field(default_factory=dict)
    data_sources: tuple[str, ...] = ()
    """Names or patterns (`*`, `?`, `[ab]`) of the rows that it judges; none: all rows."""
    label: str = ""
    """Its name in metrics: without its file; the second of the same name is `name_2`."""
    places: FunctionPlaces = field(default_factory=FunctionPlaces)
    """The settings that say so, for messages."""

    def judges(self, data_source: str) -> bool:
        """Whether it judges responses to such rows."""
        patterns = self.data_sources
        return not patterns or any(fnmatchcase(data_source, each) for each in patterns)


def parts_of(reward: RewardConfig) -> tuple[Part, ...]:
    """The functions of a reward, in the order of the recipe.

    Raises:
        SettingError: An entry of `reward.functions` is malformed, or there is `reward.function`
            beside it.
    """
    if not reward.functions:
        return (Part(reward.function, 1.0, reward.options),)
    default = RewardConfig()
    for name in ("function", "options"):
        if getattr(reward, name) != getattr(default, name):
            problem = f"reward.functions names {len(reward.functions)} functions in its place"
            raise SettingError(f"reward.{name}", getattr(reward, name), problem, "give one of both")
    parts, seen = [], Counter[str]()
    for number, entry in enumerate(reward.functions):
        part = _part(entry, number)
        name = part.name.rpartition(":")[2]
        seen[name] += 1
        parts.append(replace(part, label=name if seen[name] == 1 else f"{name}_{seen[name]}"))
    return tuple(parts)


def named_functions(reward: RewardConfig) -> tuple[str, ...]:
    """Names of a reward's functions; of malformed entries those that can be read."""
    if not reward.functions:
        return (reward.function,)
    names = [each.get("name") for each in reward.functions if isinstance(each, Mapping)]
    return tuple(name for name in names if isinstance(name, str))


def described(reward: RewardConfig) -> str:
    """The reward's functions, for messages."""
    if not reward.functions:
        return f"reward.function = {reward.function!r}"
    return f"{SETTING} = {', '.join(named_functions(reward))}"


def require_judged(parts: Sequence[Part], data_sources: Iterable[str]) -> None:
    """Refuses rows that no function judges.

    Raises:
        SettingError: With the first such data source.
    """
    for source in data_sources:
        if not any(part.judges(source) for part in parts):
            patterns = [list(part.data_sources) for part in parts]
            problem = f"no function judges rows with the data_source {source!r}"
            fix = "add it to the data_sources of one, or leave out those of a function for the rest"
            raise SettingError(f"{SETTING}: data_sources", patterns, problem, fix)


def _part(entry: Any, number: int) -> Part:
    setting = f"{SETTING}[{number}]"
    if not isinstance(entry, Mapping):
        raise SettingError(setting, entry, "an entry is no mapping", f"write {_EXAMPLE}")
    for key in entry:
        if key not in _KEYS:
            near = closest(str(key), _KEYS)
            problem = f"it has {key!r}{f', did you mean {near!r}?' if near else ''}"
            raise SettingError(setting, dict(entry), problem, f"keys are {', '.join(_KEYS)}")
    name, weight = entry.get("name"), entry.get("weight", 1.0)
    options, sources = entry.get("options") or {}, entry.get("data_sources") or ()
    sources = [sources] if isinstance(sources, str) else sources
    if not isinstance(name, str):
        raise SettingError(setting, dict(entry), "it has no name", f"write {_EXAMPLE}")
    if type(weight) not in (int, float) or not math.isfinite(weight):
        raise SettingError(setting, dict(entry), "its weight is no number", "give one, such as 0.1")
    if not isinstance(options, Mapping):
        raise SettingError(
            setting, dict(entry), "its options are no mapping", "write {name: value}"
        )
    if not isinstance(sources, (list, tuple)) or not all(isinstance(s, str) for s in sources):
        fix = "write [gsm8k, 'math*']"
        raise SettingError(setting, dict(entry), "its data_sources are no list of names", fix)
    places = FunctionPlaces(f"{setting}.name", f"{setting}.options")
    return Part(name, float(weight), dict(options), tuple(sources), places=places)
