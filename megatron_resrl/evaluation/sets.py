"""The sets of an evaluation: whose questions, answered how, judged by which reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from megatron_resrl.config.problems import Problem, RecipeError
from megatron_resrl.config.ranges import field_ranges, range_problem
from megatron_resrl.config.schema import (
    DataConfig,
    EvaluationConfig,
    RewardConfig,
    RolloutConfig,
)
from megatron_resrl.config.schema_questions import FileEntry
from megatron_resrl.data.generated import held_out_questions
from megatron_resrl.data.prompts import Prompt
from megatron_resrl.data.question_files import QuestionFile, resolve_files
from megatron_resrl.errors import SettingError
from megatron_resrl.evaluation.suite_entries import SUITES_SETTING, suite_entries
from megatron_resrl.rewards.parts import parts_of

FILES_SETTING = "evaluation.files"

_KINDS: dict[str, tuple[type[Any], ...]] = {
    "samples_per_prompt": (int,),
    "temperature": (int, float),
    "top_p": (int, float),
    "max_prompts": (int,),
    "max_response_length": (int,),
}
"""Number that an entry may have for itself -> its types."""
_RANGES = field_ranges(EvaluationConfig) | field_ranges(RolloutConfig)
OWN_KEYS = ("reward", "pass_at", *_KINDS)
"""Keys of an entry of `evaluation.files` beside those of a file of questions."""


@dataclass(frozen=True)
class SetSettings:
    """How the questions of one file are answered and judged."""

    file: QuestionFile
    reward: RewardConfig
    """With the function of this set; the other settings are those of the recipe."""
    samples_per_prompt: int
    temperature: float
    top_p: float
    pass_at: tuple[int, ...]
    max_response_length: int
    """Largest number of new tokens of a response."""
    max_prompts: int | None
    """Only the first rows of the file are read; None: all."""
    setting: str = FILES_SETTING
    """That names it, for messages."""
    environment: str | None = None
    """What `rollout.environment` has to be; None: the questions need none."""

    @property
    def top_k(self) -> int:
        """0: evaluations keep all tokens, and `top_p` alone cuts the distribution."""
        return 0

    def as_asked(self) -> dict[str, Any]:
        """What of it decides how its numbers compare with others', as plain values."""
        names = ("samples_per_prompt", "temperature", "top_p", "max_response_length")
        own = {name: getattr(self, name) for name in names}
        return own | {"prompt_template": self.file.prompt_template}

    @property
    def name(self) -> str:
        """In the metrics: the file's name without its ending, or the entry's `name`."""
        return self.file.name


@dataclass(frozen=True)
class EvaluationSet:
    """The questions of one file, read."""

    settings: SetSettings
    prompts: list[Prompt]
    dropped: tuple[int, ...] = ()
    """Rows, from 0, of the questions that are left out: too long, or without an answer."""

    @property
    def name(self) -> str:
        """In the metrics."""
        return self.settings.name


def evaluation_sets(
    evaluation: EvaluationConfig,
    data: DataConfig,
    reward: RewardConfig,
    max_response_length: int,
) -> list[SetSettings]:
    """The sets of a recipe, first those of `evaluation.files`; arguments as for `resolve_sets`.

    Raises:
        RecipeError: An entry is malformed, or names no file.
    """
    sets, problems = resolve_sets(evaluation, data, reward, max_response_length)
    if problems:
        raise RecipeError(problems)
    return sets


def resolve_sets(
    evaluation: EvaluationConfig,
    data: DataConfig,
    reward: RewardConfig,
    max_response_length: int,
) -> tuple[list[SetSettings], list[Problem]]:
    """Like `evaluation_sets`, but what is wrong is returned; a missing file counts as a file.

    A missing file of a suite is among the problems.

    Args:
        evaluation: What holds where an entry says nothing, and the entries.
        data: Columns and system prompt where an entry says nothing.
        reward: That of training, for sets without one of their own.
        max_response_length: That of training; a set's may be smaller.
    """
    suites, problems = suite_entries(evaluation.suites, evaluation.suites_dir)
    named: list[tuple[str, FileEntry, str | None]] = [
        *((FILES_SETTING, entry, None) for entry in evaluation.files),
        *((SUITES_SETTING, entry, suite.environment) for suite, entry in suites),
    ]
    shared: dict[str, Any] = {
        "samples_per_prompt": evaluation.samples_per_prompt,
        "temperature": evaluation.temperature,
        "top_p": evaluation.top_p,
        "pass_at": evaluation.pass_at,
        "max_prompts": evaluation.max_prompts,
        "max_response_length": max_response_length,
    }
    sets: list[SetSettings] = []
    for setting, entry, environment in named:
        files, wrong_entry = _questions_of(setting, entry, data)
        problems += wrong_entry
        for file in files:
            wrong = list(_wrong_numbers(setting, file, max_response_length))
            wrong += _wrong_reward(setting, file)
            # A pattern may stand for many files, of which each would say the same.
            problems += [each for each in wrong if each not in problems]
            if not wrong:
                own = shared | {"setting": setting, "environment": environment} | file.own
                own["reward"] = _own_reward(reward, own.get("reward"))
                own["pass_at"] = tuple(own["pass_at"])
                sets.append(SetSettings(file=file, **own))
    return sets, problems


def _questions_of(
    setting: str, entry: FileEntry, data: DataConfig
) -> tuple[list[QuestionFile], list[Problem]]:
    if not isinstance(entry, dict) or "generator" not in entry or setting != FILES_SETTING:
        return resolve_files(setting, [entry], data, own_keys=OWN_KEYS)
    found, problems = held_out_questions(setting, entry, data, OWN_KEYS)
    return [found] if found else [], problems


def _own_reward(shared: RewardConfig, own: Any) -> RewardConfig:
    """The reward of an entry that `_wrong_reward` finds nothing wrong with."""
    if own is None:
        return shared
    if isinstance(own, str):
        return replace(shared, function=own, options={}, functions=())
    if not isinstance(own, Mapping):
        return replace(shared, function=RewardConfig().function, options={}, functions=tuple(own))
    options = dict(own.get("options") or {})
    return replace(shared, function=own["function"], options=options, functions=())


def _wrong_numbers(setting: str, file: QuestionFile, max_response_length: int) -> Iterator[Problem]:
    for name, value in file.own.items():
        said: dict[str, Any] = {"path": file.path, name: value}
        if name in _KINDS:
            if type(value) not in _KINDS[name]:
                kind = "an integer" if float not in _KINDS[name] else "a number"
                yield Problem(setting, said, f"{name} is {value!r}", f"give {kind}")
            elif found := range_problem(value, _RANGES[name]):
                yield Problem(setting, said, f"{name}: {found[0]}", found[1])
            elif name == "max_response_length" and value > max_response_length:
                problem = f"more than rollout.max_response_length, which is {max_response_length}"
                yield Problem(setting, said, problem, "raise that one, or use fewer tokens here")
        elif name == "pass_at":
            good = isinstance(value, (list, tuple)) and all(type(k) is int for k in value)
            if not good:
                yield Problem(setting, said, f"pass_at is {value!r}", "give a list like [1, 4]")


def _wrong_reward(setting: str, file: QuestionFile) -> Iterator[Problem]:
    own = file.own.get("reward", "math")
    fix = "give the name of a function, {function: NAME, options: {...}}, or a list of functions"
    said = {"path": file.path, "reward": own}
    if isinstance(own, Mapping):
        unknown = [key for key in own if key not in ("function", "options")]
        if unknown:
            yield Problem(setting, said, f"a reward has no key {unknown[0]!r}", fix)
        elif not isinstance(own.get("function"), str):
            yield Problem(setting, said, "its reward has no function", fix)
        elif not isinstance(own.get("options") or {}, Mapping):
            yield Problem(setting, said, "the options of its reward are no mapping", fix)
    elif isinstance(own, (list, tuple)) and own:
        try:
            parts_of(RewardConfig(functions=tuple(own)))
        except SettingError as error:
            yield Problem(setting, said, error.problem, error.fix)
    elif not isinstance(own, str):
        yield Problem(setting, said, f"its reward is {own!r}", fix)
