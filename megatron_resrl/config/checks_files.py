"""Files that a run reads or writes: questions, tokenizer, reward function, output directory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megatron_resrl.config.facts import Facts, read_json
from megatron_resrl.config.model_place import find_model
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.question_files import KNOWN, kind_of, resolve_files
from megatron_resrl.config.schema import DataConfig, FileEntry

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def _check_questions(
    setting: str, entries: tuple[FileEntry, ...], data: DataConfig
) -> Iterator[Problem]:
    files, problems = resolve_files(setting, entries, data)
    yield from problems
    for file in dict.fromkeys(each.path for each in files):
        path = Path(file)
        if kind_of(path) is None:
            fix = f"give a file that ends in {KNOWN}"
            yield Problem(setting, file, f"unknown kind of file {path.suffix!r}", fix)
        elif not path.is_file():
            fix = f"correct the path; relative ones start from {Path.cwd()}"
            yield Problem(setting, file, "there is no such file", fix, "machine")
        elif path.stat().st_size == 0:
            yield Problem(setting, file, "the file is empty", "give a file with questions")


def _check_training_files(facts: Facts) -> Iterator[Problem]:
    files = facts.recipe.data.train_files
    if not files:
        fix = "give files with questions, or a folder of them"
        yield Problem("data.train_files", files, "there is nothing to train on", fix)
    yield from _check_questions("data.train_files", files, facts.recipe.data)


def _check_evaluation_files(facts: Facts) -> Iterator[Problem]:
    entries, data = facts.recipe.evaluation.files, facts.recipe.data
    yield from _check_questions("evaluation.files", entries, data)
    names = [file.name for file in resolve_files("evaluation.files", entries, data)[0]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        problem = f"two files share the name {', '.join(map(repr, twice))} in the metrics"
        fix = "give one another name, e.g. {path: FILE, name: NAME}"
        yield Problem("evaluation.files", entries, problem, fix)


def _check_pass_at(facts: Facts) -> Iterator[Problem]:
    evaluation = facts.recipe.evaluation
    samples = evaluation.samples_per_prompt
    if any(not 1 <= k <= samples for k in evaluation.pass_at):
        problem = f"pass@k needs k samples, and evaluation.samples_per_prompt is {samples}"
        fix = f"use k from 1 to {samples} or take more samples"
        yield Problem("evaluation.pass_at", evaluation.pass_at, problem, fix)


def _check_answer_pattern(facts: Facts) -> Iterator[Problem]:
    pattern = facts.recipe.data.answer_pattern
    if pattern is None:
        return
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        problem = f"not a valid regular expression ({error})"
        yield Problem("data.answer_pattern", pattern, problem, "correct it")
        return
    if groups != 1:
        fix = r"put parentheses around the answer, e.g. '#### (-?\d+)'"
        yield Problem("data.answer_pattern", pattern, f"it has {groups} groups, not one", fix)


def _check_tokenizer(facts: Facts) -> Iterator[Problem]:
    model, data = facts.recipe.model, facts.recipe.data
    setting = "model.path" if model.tokenizer_path is None else "model.tokenizer_path"
    value = model.path if model.tokenizer_path is None else model.tokenizer_path
    directory = find_model(value).files
    if setting == "model.path" and not facts.hf_config:
        return  # Reported as a wrong model directory.
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        fix = "give a directory with the tokenizer of a Hugging Face model"
        yield Problem(setting, value, f"none of {', '.join(_TOKENIZER_FILES)} is there", fix)
        return
    try:
        settings = read_json(directory / "tokenizer_config.json") or {}
        tokenizer = read_json(directory / "tokenizer.json") or {}
    except ValueError as error:
        problem = f"a tokenizer file is not valid JSON ({error})"
        yield Problem(setting, value, problem, "fetch the tokenizer again")
        return
    if data.apply_chat_template and not _has_chat_template(directory, settings):
        fix = "use the tokenizer of an instruct model, or set data.apply_chat_template to false"
        yield Problem(setting, value, "the tokenizer has no chat template", fix)
    yield from _check_pad_token(facts, setting, value, settings, tokenizer)


def _has_chat_template(directory: Path, settings: dict[str, Any]) -> bool:
    files = ("chat_template.jinja", "chat_template.json")
    return bool(settings.get("chat_template")) or any((directory / f).is_file() for f in files)


def _check_pad_token(
    facts: Facts, setting: str, value: str, settings: dict[str, Any], tokenizer: dict[str, Any]
) -> Iterator[Problem]:
    """A pad token that was added to the tokenizer, but not to the model."""
    size = facts.hf_config.get("vocab_size")
    pad = settings.get("pad_token")
    content = pad.get("content") if isinstance(pad, dict) else pad
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())}
    if size is not None and added.get(content, 0) >= size:
        problem = f"out-of-vocabulary pad token: {content!r} has id {added[content]}"
        fix = "use another pad token or a model that has been resized"
        yield Problem(setting, value, f"{problem}, the model's vocab_size is {size}", fix)


def _check_length_scaling(facts: Facts) -> Iterator[Problem]:
    reward = facts.recipe.reward
    if reward.length_scaling and reward.length_floor_at <= reward.length_full_until:
        problem = f"reward.length_full_until is {reward.length_full_until}"
        fix = "the floor must be reached at a larger length"
        yield Problem("reward.length_floor_at", reward.length_floor_at, problem, fix)


def _check_logging(facts: Facts) -> Iterator[Problem]:
    project = facts.recipe.logging.wandb_project
    if project is not None and find_spec("wandb") is None:
        fix = "install the `wandb` extra (pip install megatron-resrl[wandb]) or set it to null"
        yield Problem("logging.wandb_project", project, "wandb is not installed", fix, "machine")


RUN_CHECKS = (
    _check_evaluation_files,
    _check_pass_at,
    _check_answer_pattern,
    _check_tokenizer,
    _check_logging,
)
"""For training and evaluation."""

DATA_CHECKS = (_check_training_files, _check_length_scaling)
"""For training only."""
