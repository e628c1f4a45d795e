"""The reward function, and the first ground truths that it will get."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from megatron_resrl.config.facts import Facts
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.question_files import QuestionFile, resolve_files
from megatron_resrl.errors import InputError, SettingError

FIRST_ROWS = 100
"""Of each file, whose ground truths are read; a run reads all of them."""

WORKERS_PER_CORE = 4


def _check_reward(facts: Facts) -> Iterator[Problem]:
    # Here, because rewards lie above the settings; only this check asks them.
    from megatron_resrl.rewards.registry import load_reward

    function = facts.recipe.reward.function
    try:
        check = load_reward(function).check
    except SettingError as error:
        yield Problem.of(error)
        return
    except Exception as error:  # A user's file may raise anything while it is imported.
        fix = "give math, integer, or path.py:name of a function that can"
        problem = f"cannot be used ({type(error).__name__}: {error})"
        yield Problem("reward.function", function, problem, fix)
        return
    # An environment scores in the reward function's place.
    if check is not None and facts.recipe.rollout.environment is None:
        recipe = facts.recipe
        settings = {
            "data.train_files": recipe.data.train_files,
            "evaluation.files": recipe.evaluation.files,
        }
        for setting, entries in settings.items():
            files, _ = resolve_files(setting, entries, recipe.data)
            for file in files:
                yield from _check_ground_truths(setting, file, check)


def _check_ground_truths(
    setting: str, file: QuestionFile, check: Callable[[Any], None]
) -> Iterator[Problem]:
    """Reads the first rows. A file that cannot be read is another check's."""
    from megatron_resrl.data.prompts import load_prompts

    try:
        records = load_prompts(
            file.path,
            prompt_key=file.prompt_key,
            answer_key=file.answer_key,
            answer_pattern=file.answer_pattern,
            limit=FIRST_ROWS,
        )
    except InputError:
        return
    wrong = []
    for record in records:
        try:
            check(record.ground_truth)
        except Exception as error:  # A user's check may raise anything.
            wrong.append((record, error))
    if wrong:
        record, error = wrong[0]
        count = f"{len(wrong)} of its first {len(records)} questions have an answer"
        problem = f"{count} that the reward function cannot use; {record}"
        yield Problem(setting, file.path, problem, str(error))


def _check_workers(facts: Facts) -> Iterator[Problem]:
    workers, cores = facts.recipe.reward.workers, len(os.sched_getaffinity(0))
    if workers > WORKERS_PER_CORE * cores:
        problem = f"every rank starts as many processes, and this machine has {cores} cores"
        fix = f"give at most {WORKERS_PER_CORE * cores}; 1 or 2 suit most functions"
        yield Problem("reward.workers", workers, problem, fix, "machine")


REWARD_CHECKS = (_check_reward, _check_workers)
