"""The reward function, and the first ground truths that it will get."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_resrl.checks.facts import Check, Facts
from megatron_resrl.checks.first_rows import FIRST_ROWS, FirstRows
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import Recipe, RewardConfig
from megatron_resrl.errors import SettingError
from megatron_resrl.evaluation.sets import SetSettings
from megatron_resrl.rewards.parts import (
    SETTING,
    Part,
    named_functions,
    parts_of,
    require_judged,
)
from megatron_resrl.rewards.registry import (
    RUNS_CODE,
    WITHOUT_ANSWERS,
    columns_check,
    load_reward,
)
from megatron_resrl.rollout.environments.registry import runs_code
from megatron_resrl.rollout.refused_rows import refused_rows
from megatron_resrl.sandbox.backends import ask_server, find_backend, wanted_backends

WORKERS_PER_CORE = 4


_Checks = list[tuple[Part, Callable[[Any], None] | None]]
"""The functions of a reward, each with its check of ground truths."""


def _check_reward(reward: RewardConfig, sets: Sequence[SetSettings]) -> Iterator[Problem]:
    _, problem = _loaded(reward)
    if problem is not None:
        yield problem
    for each in sets:
        if each.reward == reward:
            continue
        _, problem = _loaded(each.reward)
        if problem is not None:
            said = {"path": each.file.path, "reward": each.file.own["reward"]}
            yield Problem(each.setting, said, problem.problem, problem.fix)


def _check_deciding(reward: RewardConfig) -> Iterator[Problem]:
    """Says so where what decides about correct responses knows nothing of answers."""
    checks, _ = _loaded(reward)
    if not reward.functions or not checks or checks[0][0].name not in WITHOUT_ANSWERS:
        return
    first = checks[0][0].name
    problem = f"{first} is the first function, so that it decides which responses are correct"
    yield Problem(SETTING, first, problem, "put the function that judges answers first", "note")


def _check_evaluation_answers(
    sets: Sequence[SetSettings], files: Sequence[FirstRows]
) -> Iterator[Problem]:
    rows = {each.file: each for each in files}
    for each in sets:
        if each.file in rows:
            yield from _check_answers(each.setting, rows[each.file], each.reward)


def _check_training_answers(reward: RewardConfig, files: Sequence[FirstRows]) -> Iterator[Problem]:
    for rows in files:
        yield from _check_answers(rows.setting, rows, reward)


def _loaded(reward: RewardConfig) -> tuple[_Checks, Problem | None]:
    """The functions' checks of ground truths, and why they cannot be used."""
    try:
        parts = parts_of(reward)
    except SettingError as error:
        return [], Problem.of(error)
    checks: _Checks = []
    for part in parts:
        try:
            checks.append((part, load_reward(part.name, part.options, None, part.places).check))
        except SettingError as error:
            return [], Problem.of(error)
    return checks, None


def _check_answers(setting: str, rows: FirstRows, reward: RewardConfig) -> Iterator[Problem]:
    checks, _ = _loaded(reward)
    if not checks:
        return
    records = rows.records[:FIRST_ROWS]
    try:
        require_judged([part for part, _ in checks], [record.data_source for record in records])
    except SettingError as error:
        yield Problem(setting, rows.file.path, error.problem, error.fix)
    for part, check in checks:
        own = [record for record in records if part.judges(record.data_source)]
        of_columns = columns_check(part.name)
        for what, refused in (
            ("answers", refused_rows(own, check, "ground_truth")),
            ("rows", refused_rows(own, of_columns, "extra")),
        ):
            if not refused:
                continue
            record, refusal = refused[0]
            count = f"{len(refused)} of the first {len(own)} {what}"
            function = f"function {part.name}" if reward.functions else "function"
            first = f"that of {record}" if what == "answers" else record
            problem = f"the reward {function} cannot use {count}, the first is {first}"
            yield Problem(setting, rows.file.path, problem, str(refusal))


def _check_workers(workers: int) -> Iterator[Problem]:
    cores = len(os.sched_getaffinity(0))
    if workers > WORKERS_PER_CORE * cores:
        problem = f"every rank starts as many processes, and this machine has {cores} cores"
        fix = f"give at most {WORKERS_PER_CORE * cores}; 1 or 2 suit most functions"
        yield Problem("reward.workers", workers, problem, fix, "machine")


def sandbox_note(facts: Facts) -> str | None:
    """Where programs of responses would run on this machine; None: there are none, or nowhere."""
    if facts.elsewhere or not _runs_code(facts.recipe, facts.evaluation_sets[0]):
        return None
    try:
        return f"programs of responses run in: {find_backend(facts.recipe.reward.code)}"
    except SettingError:
        return None  # The checks say why.


def _runs_code(recipe: Recipe, sets: Sequence[SetSettings]) -> bool:
    rewards = (recipe.reward, *(each.reward for each in sets))
    rollout = recipe.rollout
    return any(
        name in RUNS_CODE for each in rewards for name in named_functions(each)
    ) or runs_code(rollout.environment, rollout.environment_options)


def _check_code(recipe: Recipe, sets: Sequence[SetSettings], elsewhere: bool) -> Iterator[Problem]:
    """The sandbox of a recipe that grades programs, or whose environment runs them.

    Args:
        recipe: With the reward of training and the environment.
        sets: Of evaluation.
        elsewhere: Whether the run is for another machine, which cannot be tried out.
    """
    if not _runs_code(recipe, sets):
        return
    reward, code = recipe.reward, recipe.reward.code
    if code.timeout_s >= reward.timeout_s:
        problem = f"a response is given up after reward.timeout_s = {reward.timeout_s:g} s"
        yield Problem("reward.code.timeout_s", code.timeout_s, problem, "give less than that")
    if code.packages is not None and not Path(code.packages).is_dir():
        fix = "make it with pip install --target FOLDER PACKAGES"
        yield Problem(
            "reward.code.packages", code.packages, "there is no such folder", fix, "machine"
        )
    try:
        wanted_backends(code)
    except SettingError as error:
        yield Problem.of(error)
        return
    if elsewhere:
        return
    try:
        backend = find_backend(code)
        if backend == "remote":
            ask_server(code)
    except SettingError as error:
        yield replace(Problem.of(error), kind="machine")
        return
    if backend == "landlock":
        problem = "programs run under Landlock: they can write no files and start no threads"
        fix = "allow user namespaces and install bubblewrap for more"
        yield Problem("reward.code.backend", code.backend, problem, fix, "note")


def _of_evaluation_answers(facts: Facts) -> Iterator[Problem]:
    if facts.recipe.rollout.environment is None:  # Else it scores in the function's place.
        yield from _check_evaluation_answers(facts.evaluation_sets[0], facts.evaluation_rows[0])


def _of_training_answers(facts: Facts) -> Iterator[Problem]:
    if facts.recipe.rollout.environment is None:
        yield from _check_training_answers(facts.recipe.reward, facts.training_rows[0])


REWARD_CHECKS: tuple[Check, ...] = (
    lambda facts: _check_reward(facts.recipe.reward, facts.evaluation_sets[0]),
    lambda facts: _check_deciding(facts.recipe.reward),
    lambda facts: _check_workers(facts.recipe.reward.workers),
    lambda facts: _check_code(facts.recipe, facts.evaluation_sets[0], facts.elsewhere),
    _of_evaluation_answers,
)
"""For training and evaluation."""

ANSWER_CHECKS: tuple[Check, ...] = (_of_training_answers,)
"""For training only."""
