"""Questions that are generated: `data.generator`, and entries of evaluations with a `generator`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_resrl.config.problems import Problem, RecipeError
from megatron_resrl.config.schema import DataConfig
from megatron_resrl.data.question_files import (
    QUESTION,
    QuestionFile,
    resolve_files,
)
from megatron_resrl.data.rows import read_rows
from megatron_resrl.errors import closest
from megatron_resrl.generators.generator import (
    ANSWER_KEY,
    PROMPT_KEY,
    new_generator,
)
from megatron_resrl.generators.reasoning_gym_tasks import LibraryMissing, TaskError

GENERATOR, FILES = "data.generator", "data.train_files"
HELD_OUT_SEED = 1_000_000_000
"""Of a generator of an evaluation that names no seed: far from the seeds of runs, whose questions
it must not ask, and the same for all runs, which are compared by it."""
HELD_OUT_SIZE = 100
"""Questions of a generator of an evaluation that names no size."""

_OF_TRAINING = ("generator_options", "generator_size", "generator_seed")
_OPTIONS, _SIZE, _SEED = "options", "size", "seed"
_TEXTS = ("name", "system_prompt", "prompt_template")
"""Keys of an entry that it shares with files."""
KEYS = ("generator", _OPTIONS, _SIZE, _SEED, *_TEXTS)
"""Of an entry of an evaluation, beside those of sampling and reward."""


def training_questions(data: DataConfig, seed: int) -> tuple[list[QuestionFile], list[Problem]]:
    """What a run is trained on: the files of `data.train_files`, or what `data.generator` makes.

    Args:
        data: The settings.
        seed: Of the run; the generator's where it has none of its own.

    Returns:
        Files and generators, and what is wrong; a missing file counts as a file, and a generator
        counts where its library is missing.
    """
    if data.generator is None:
        default = DataConfig()
        problems = [
            Problem(f"data.{name}", getattr(data, name), f"there is no {GENERATOR}", "name one")
            for name in _OF_TRAINING
            if getattr(data, name) != getattr(default, name)
        ]
        files, wrong = resolve_files(FILES, data.train_files, data)
        return files, problems + wrong
    if data.train_files:
        problem = f"{FILES} names questions, too"
        return [], [Problem(GENERATOR, data.generator, problem, "give one of both")]
    found, problem_found = _generated(
        GENERATOR,
        data.generator,
        data.generator,
        options=data.generator_options,
        size=data.generator_size,
        seed=seed if data.generator_seed is None else data.generator_seed,
        texts={"system_prompt": data.system_prompt},
    )
    return ([found] if found else []), ([problem_found] if problem_found else [])


def require_training_questions(data: DataConfig, seed: int) -> list[QuestionFile]:
    """Like `training_questions`.

    Raises:
        RecipeError: Something is wrong.
    """
    files, problems = training_questions(data, seed)
    if problems:
        raise RecipeError(problems)
    return files


def held_out_questions(
    setting: str, entry: Mapping[str, Any], data: DataConfig, own_keys: Collection[str]
) -> tuple[QuestionFile | None, list[Problem]]:
    """What an entry {generator: reasoning_gym:TASK, ...} of an evaluation makes.

    Args:
        setting: For messages.
        entry: May leave all other keys out: the options are then those of `data` if the generator
            is `data.generator`, and the seed is `HELD_OUT_SEED`.
        data: The settings of training questions.
        own_keys: Keys that the entry may also have; they become `QuestionFile.own`, unchecked.

    Returns:
        The questions, None where the entry is wrong; and what is wrong.
    """
    shown = dict(entry)
    problems = [Problem(setting, shown, *wrong) for wrong in _wrong_keys(entry, own_keys)]
    if problems:
        return None, problems
    address = entry["generator"]
    same = data.generator_options if address == data.generator else {}
    texts = {"system_prompt": data.system_prompt}
    texts |= {key: entry[key] for key in _TEXTS if key in entry}
    found, problem = _generated(
        setting,
        shown,
        address,
        options=entry.get(_OPTIONS, same) or {},
        size=entry.get(_SIZE, HELD_OUT_SIZE),
        seed=entry.get(_SEED, HELD_OUT_SEED),
        texts=texts,
        own={key: entry[key] for key in own_keys if key in entry},
    )
    return found, [problem] if problem else []


def rows_of(file: QuestionFile, limit: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a file or generator, each with where it stands; perhaps more than the limit.

    Raises:
        InputError: They cannot be read or made.
    """
    if file.generator is not None:
        return file.generator.rows(limit)
    return read_rows(Path(file.path))


def _generated(
    setting: str,
    shown: Any,
    address: str,
    *,
    options: Mapping[str, Any],
    size: int,
    seed: int,
    texts: Mapping[str, Any],
    own: Mapping[str, Any] | None = None,
) -> tuple[QuestionFile | None, Problem | None]:
    try:
        generator = new_generator(address, options, size, seed)
    except TypeError as error:
        return None, Problem(setting, shown, f"an option: {error}", "give numbers, texts and lists")
    file = QuestionFile(
        path=address,
        name=texts.get("name") or generator.task,
        prompt_key=PROMPT_KEY,
        answer_key=ANSWER_KEY,
        system_prompt=texts.get("system_prompt"),
        prompt_template=texts.get("prompt_template"),
        generator=generator,
        own=dict(own or {}),
    )
    try:
        generator.check()
    except TaskError as error:
        about = f"{GENERATOR}_options" if setting == GENERATOR and options else setting
        value = dict(options) if about != setting else shown
        return None, Problem(about, value, error.problem, error.fix)
    except LibraryMissing as error:
        return file, Problem(setting, shown, error.problem, error.fix, "machine")
    return file, None


def _wrong_keys(entry: Mapping[str, Any], own_keys: Collection[str]) -> Iterator[tuple[str, str]]:
    known = (*KEYS, *own_keys)
    for key in entry:
        if key not in known:
            near = closest(str(key), known)
            fix = f"did you mean {near}?" if near else f"a generator has {', '.join(KEYS)}"
            yield f"a generator has no key {key!r}", fix
    for key in ("generator", *_TEXTS):
        if key in entry and not isinstance(entry[key], str):
            yield f"{key} is {entry[key]!r}", "give a text"
    if not isinstance(entry.get(_OPTIONS) or {}, Mapping):
        yield f"its options are {entry[_OPTIONS]!r}", "give a mapping like {max_terms: 4}"
    for key, least in ((_SIZE, 1), (_SEED, 0)):
        value = entry.get(key, least)
        if type(value) is not int or value < least:
            yield f"{key} is {value!r}", f"give an integer from {least}"
    template = entry.get("prompt_template")
    if isinstance(template, str) and QUESTION not in template:
        fix = f"write {QUESTION} where the question is to stand"
        yield "its prompt_template has no place for the question", fix
