"""The model's weight files, as far as their headers tell: whole, readable, of this config.json."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from megatron_resrl.checks.facts import RunCheck, RunFacts
from megatron_resrl.config.problems import Kind, Problem
from megatron_resrl.errors import InputError
from megatron_resrl.policy.families import Family
from megatron_resrl.weights.expected import compare, first_few
from megatron_resrl.weights.files import WeightsNotHere, stored_tensors
from megatron_resrl.weights.megatron_folders import find_checkpoint, holds_megatron


def _check_weights(path: str, directory: Path, family: Family | None) -> Iterator[Problem]:
    """`directory`: where the weights of the model at `path` are."""
    if (directory / "adapter_config.json").is_file():
        problem = "it holds an adapter (adapter_config.json), which transformers adds to the model"
        yield _wrong(path, problem, "merge the two and give the merged model")
    elif any(directory.glob("*.safetensors")):
        yield from _check_safetensors(path, directory, family)
    elif holds_megatron(directory):
        yield from _check_megatron(path, directory)
    else:
        yield _wrong(
            path,
            "it has no *.safetensors file",
            "fetch the model's safetensors files, or load the model with transformers and save it "
            "again",
            "machine",
        )


def _check_safetensors(path: str, directory: Path, family: Family | None) -> Iterator[Problem]:
    try:
        stored = stored_tensors(directory)
    except InputError as error:
        # The line begins with the directory.
        message = re.sub(rf"^{re.escape(str(directory))} ", "it ", str(error))
        problem, _, fix = message.rpartition("; ")
        kind: Kind = "machine" if isinstance(error, WeightsNotHere) else "recipe"
        yield _wrong(path, problem, fix, kind)
        return
    if family is None:
        return
    try:
        found = compare(family, stored)
    # Sizes that config.json leaves to transformers' defaults; the run compares with those.
    except (KeyError, TypeError):
        return
    if found.wrong:
        problem = f"its weights do not fit its config.json: {first_few(found.wrong)}"
        yield _wrong(path, problem, found.remedy)
    elif found.unexpected:
        names = first_few(found.unexpected)
        problem = f"its files hold tensors that config.json has no place for: {names}"
        yield _wrong(path, problem, "they are left out, as by transformers", "note")


def _check_megatron(path: str, directory: Path) -> Iterator[Problem]:
    """Whether it is a checkpoint of megatron-core, or a marker file names one."""
    try:
        find_checkpoint(directory)
    except InputError as error:
        problem, _, fix = str(error).rpartition("; ")
        yield _wrong(path, problem, fix)


def _wrong(path: str, problem: str, fix: str, kind: Kind = "recipe") -> Problem:
    return Problem("model.path", path, problem, fix, kind)


def _of_a_read_model(facts: RunFacts) -> Iterator[Problem]:
    if facts.hf_config:
        path = facts.recipe.model.path
        yield from _check_weights(path, facts.model_place.weights, facts.family)


WEIGHT_CHECKS: tuple[RunCheck, ...] = (_of_a_read_model,)
