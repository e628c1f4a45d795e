"""Files that a run reads or writes: questions, tokenizer, reward function, output directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_resrl.checks.facts import Check, Facts, RunFacts
from megatron_resrl.config.model_place import find_model
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import DataConfig, EvaluationConfig, RewardConfig
from megatron_resrl.config.schema_questions import FileEntry
from megatron_resrl.data.file_entries import KNOWN, kind_of
from megatron_resrl.data.question_files import QuestionFile, pattern_problem
from megatron_resrl.errors import SettingError
from megatron_resrl.evaluation.sets import FILES_SETTING, SetSettings
from megatron_resrl.weights.vocabulary import TOKENIZER_FILES, tokens_beyond


def check_files(setting: str, paths: Sequence[str], content: str) -> Iterator[Problem]:
    """Whether files of rows are there.

    Args:
        setting: That names them.
        paths: May repeat one.
        content: What is in them, for messages.
    """
    for file in dict.fromkeys(paths):
        path = Path(file)
        if kind_of(path) is None:
            fix = f"give a file that ends in {KNOWN}"
            yield Problem(setting, file, f"unknown kind of file {path.suffix!r}", fix)
        elif not path.is_file():
            fix = f"correct the path; relative ones start from {Path.cwd()}"
            yield Problem(setting, file, "there is no such file", fix, "machine")
        elif path.stat().st_size == 0:
            yield Problem(setting, file, "the file is empty", f"give a file with {content}")


def _check_training_files(data: DataConfig, files: Sequence[QuestionFile]) -> Iterator[Problem]:
    if not data.train_files and data.generator is None:
        fix = "give files with questions, or a folder of them; or a data.generator"
        yield Problem("data.train_files", data.train_files, "there is nothing to train on", fix)
    paths = [each.path for each in files if each.generator is None]
    yield from check_files("data.train_files", paths, "questions")


def _check_evaluation_files(
    entries: tuple[FileEntry, ...], sets: Sequence[SetSettings]
) -> Iterator[Problem]:
    # What is read of suites has said which of their files are missing.
    paths = [
        each.file.path
        for each in sets
        if each.setting == FILES_SETTING and each.file.generator is None
    ]
    yield from check_files(FILES_SETTING, paths, "questions")
    names = [each.name for each in sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        problem = f"two files share the name {', '.join(map(repr, twice))} in the metrics"
        fix = "give one file another name, e.g. {path: FILE, name: NAME}"
        settings = [each.setting for each in sets if each.name in twice]
        yield Problem(settings[-1], entries, problem, fix)


def _check_pass_at(evaluation: EvaluationConfig, sets: Sequence[SetSettings]) -> Iterator[Problem]:
    samples = evaluation.samples_per_prompt
    if any(not 1 <= k <= samples for k in evaluation.pass_at):
        problem = f"pass@k needs k samples, and evaluation.samples_per_prompt is {samples}"
        fix = f"use k from 1 to {samples} or take more samples"
        yield Problem("evaluation.pass_at", evaluation.pass_at, problem, fix)
    for each in sets:
        own, samples = each.file.own, each.samples_per_prompt
        if own.keys() & {"pass_at", "samples_per_prompt"} and any(
            not 1 <= k <= samples for k in each.pass_at
        ):
            problem = f"pass@k needs k samples, and the set has samples_per_prompt {samples}"
            said = {"path": each.file.path, "pass_at": list(each.pass_at)}
            yield Problem(each.setting, said, problem, f"use k from 1 to {samples}")


def _check_answer_pattern(pattern: str | None) -> Iterator[Problem]:
    if pattern is not None and (wrong := pattern_problem(pattern)):
        yield Problem("data.answer_pattern", pattern, *wrong)


def check_tokenizer(facts: RunFacts) -> Iterator[Problem]:
    """Whether the tokenizer can be read, and fits the model and the recipe."""
    model = facts.recipe.model
    setting = "model.path" if model.tokenizer_path is None else "model.tokenizer_path"
    value = model.path if model.tokenizer_path is None else model.tokenizer_path
    directory = find_model(value).files
    if setting == "model.path" and not facts.hf_config:
        return  # Reported as a wrong model directory.
    if not directory.is_dir():
        fix = "give the directory of a Hugging Face model's tokenizer"
        yield Problem(setting, value, "there is no such directory", fix, "machine")
        return
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        fix = "give a directory with the tokenizer of a Hugging Face model"
        problem = f"none of {', '.join(TOKENIZER_FILES)} is there"
        if setting == "model.path" and not (directory / "config.json").is_file():
            problem = f"the checkpoint of Megatron-LM in model.path {value!r} has no tokenizer"
            yield Problem("model.tokenizer_path", None, problem, fix)
        else:
            yield Problem(setting, value, problem, fix)
        return
    tokenizer = facts.tokenizer
    if isinstance(tokenizer, SettingError):
        if not tokenizer.problem.startswith("config.json"):  # The model's checks say so.
            yield Problem.of(tokenizer)
        return
    size = facts.hf_config.get("vocab_size")
    if size is not None and (beyond := tokens_beyond(tokenizer.get_vocab(), size)):
        fix = "use the tokenizer of this model, or resize the model's embedding"
        yield Problem(setting, value, beyond, fix)


def check_chat_template(facts: Facts) -> Iterator[Problem]:
    """Only of a tokenizer that can be read."""
    tokenizer, model = facts.tokenizer, facts.recipe.model
    if isinstance(tokenizer, SettingError) or not facts.recipe.data.apply_chat_template:
        return
    if not tokenizer.chat_template:
        setting = "model.path" if model.tokenizer_path is None else "model.tokenizer_path"
        fix = "use the tokenizer of an instruct model, or set data.apply_chat_template to false"
        problem = "the tokenizer has no chat template"
        yield Problem(setting, model.tokenizer_path or model.path, problem, fix)


def _check_length_scaling(reward: RewardConfig) -> Iterator[Problem]:
    if reward.length_scaling and reward.length_floor_at <= reward.length_full_until:
        problem = f"reward.length_full_until is {reward.length_full_until}"
        fix = "the floor must be reached at a larger length"
        yield Problem("reward.length_floor_at", reward.length_floor_at, problem, fix)


RUN_CHECKS: tuple[Check, ...] = (
    lambda facts: iter(facts.evaluation_sets[1]),
    lambda facts: _check_evaluation_files(
        facts.recipe.evaluation.entries, facts.evaluation_sets[0]
    ),
    lambda facts: _check_pass_at(facts.recipe.evaluation, facts.evaluation_sets[0]),
    lambda facts: _check_answer_pattern(facts.recipe.data.answer_pattern),
    check_chat_template,
)
"""For training and evaluation."""

DATA_CHECKS: tuple[Check, ...] = (
    lambda facts: iter(facts.training_files[1]),
    lambda facts: _check_training_files(facts.recipe.data, facts.training_files[0]),
    lambda facts: _check_length_scaling(facts.recipe.reward),
)
"""For training only."""
