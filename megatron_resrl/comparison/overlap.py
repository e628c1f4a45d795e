"""Questions of an evaluation that a run was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_resrl.comparison.arms import Arm, CommonSet
from megatron_resrl.comparison.evaluations import Evaluation
from megatron_resrl.config.schema import DataConfig
from megatron_resrl.data.generated import training_questions
from megatron_resrl.data.prompts import read_records
from megatron_resrl.data.question_files import without_template
from megatron_resrl.errors import InputError
from megatron_resrl.evaluation.suites import SUITES
from megatron_resrl.preparation.overlap import normalised

_QUESTIONS = (
    *("train_files", "prompt_key", "answer_key", "answer_pattern"),
    *("generator", "generator_options", "generator_size", "generator_seed"),
)
"""Settings of `data` that say which questions a run is trained on."""


def training_overlap(arms: Sequence[Arm], sets: Sequence[CommonSet]) -> list[dict[str, Any]]:
    """How many questions of each set are among the training questions of each arm.

    Returns:
        For each arm `arm`, and `questions`: set -> rows of the set's file that were trained on; or
        `unknown`: why the training questions could not be read.
    """
    found: list[dict[str, Any]] = []
    for arm in arms:
        try:
            trained = set().union(*(_training_questions(run.recipe) for run in arm.runs))
        except InputError as error:
            found.append({"arm": arm.name, "unknown": str(error)})
            continue
        rows = {
            common.name: [
                row
                for row in common.rows
                if normalised(_question(arm.runs[0], common, row)) in trained
            ]
            for common in sets
        }
        found.append({"arm": arm.name, "questions": rows})
    return found


def _question(run: Evaluation, common: CommonSet, row: int) -> str:
    """Without the words that the set's prompt has around every question."""
    text = str(run.sets[common.name].records[row]["question"])
    suite = SUITES.get(common.name)
    own = run.settings.get(common.name, {}).get("prompt_template")
    return without_template(text, own or (suite.prompt_template if suite else None))


def _training_questions(recipe: Mapping[str, Any]) -> set[str]:
    data = recipe.get("data", {})
    if not data.get("train_files") and not data.get("generator"):
        raise InputError("its recipe names no data.train_files")
    asked = DataConfig(**{key: data[key] for key in _QUESTIONS if data.get(key) is not None})
    files, problems = training_questions(asked, recipe.get("seed", 0))
    if problems:
        raise InputError(str(problems[0]))
    questions = set()
    for file in files:
        plain_file = dataclasses.replace(file, prompt_template=None, system_prompt=None)
        records, _ = read_records(plain_file, tools_key=None)
        questions |= {normalised(str(record.messages[-1]["content"])) for record in records}
    return questions
