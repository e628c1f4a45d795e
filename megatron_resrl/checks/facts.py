"""What the checks look at: the recipe, the number of ranks, and the model's config.json."""

from __future__ import annotations

import abc
import functools
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from megatron_resrl.checks.first_rows import FirstRows, read_first_rows
from megatron_resrl.config.model_place import ModelPlace, find_model
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import ModelConfig, Recipe, RunSettings
from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.config.schema_sft import SftRecipe
from megatron_resrl.data.conversations import ConversationFile, conversation_files
from megatron_resrl.data.generated import FILES, GENERATOR, training_questions
from megatron_resrl.data.question_files import QuestionFile
from megatron_resrl.errors import InputError, SettingError
from megatron_resrl.evaluation.sets import SetSettings, resolve_sets
from megatron_resrl.policy.families import Family, find_family
from megatron_resrl.weights.config_json import UnmappedModel, read_config

Target = Literal["here", "cuda"]
"""The machine that a recipe is judged for: this one, or one that has CUDA devices."""


@dataclass(frozen=True)
class RunFacts(abc.ABC):
    """Of a recipe of any stage; read once, so that every check stays a small function."""

    recipe: RunSettings
    world_size: int
    """Ranks of the run."""
    hf_config: dict[str, Any]
    """config.json of `model.path`; empty if it could not be read."""
    target: Target = "here"
    """The machine that the run is for."""

    balances_experts: ClassVar[bool] = False
    """Whether the stage's loss may have a term that balances experts."""

    @property
    @abc.abstractmethod
    def step_in_words(self) -> str:
        """What one step of the run takes."""

    @functools.cached_property
    def family(self) -> Family | None:
        """The model's family; None: it is not supported, or config.json could not be read."""
        return find_family(self.hf_config) if self.hf_config.get("architectures") else None

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the recipe, or the `SettingError` that says why there is none."""
        # Here, because transformers takes seconds to import.
        from megatron_resrl.data.tokenizer import load_tokenizer

        try:
            return load_tokenizer(self.recipe.model)
        except SettingError as error:
            return error

    @property
    def has_cuda(self) -> bool:
        """Whether the run has CUDA devices."""
        return self.target == "cuda" or cuda_available()

    @property
    def elsewhere(self) -> bool:
        """Whether the run is for another kind of machine than this one, whose devices and packages
        then say nothing."""
        return self.target == "cuda" and not cuda_available()

    @property
    def model_place(self) -> ModelPlace:
        """The directories of `model.path`."""
        return find_model(self.recipe.model.path)

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model."""
        parallel = self.recipe.parallel
        return (
            parallel.tensor_model_parallel_size
            * parallel.pipeline_model_parallel_size
            * parallel.context_parallel_size
        )

    @property
    def data_parallel_size(self) -> int | None:
        """Copies of the model; None if the ranks cannot be divided into copies."""
        size = self.model_parallel_size
        return None if size < 1 or self.world_size % size else self.world_size // size


@dataclass(frozen=True)
class Facts(RunFacts):
    """Of a recipe of reinforcement learning."""

    recipe: Recipe

    @property
    def step_in_words(self) -> str:
        """Prompts and responses."""
        rollout = self.recipe.rollout
        tokens = rollout.prompts_per_step * rollout.group_size * rollout.max_response_length
        return (
            f"{rollout.prompts_per_step} prompts x {rollout.group_size} responses of up to "
            f"{rollout.max_response_length} tokens, {tokens:,} in all"
        )

    @functools.cached_property
    def training_files(self) -> tuple[list[QuestionFile], list[Problem]]:
        """The files of `data.train_files` or the generator, and what is wrong with them."""
        return training_questions(self.recipe.data, self.recipe.seed)

    @functools.cached_property
    def evaluation_sets(self) -> tuple[list[SetSettings], list[Problem]]:
        """The sets of `evaluation.files` and `evaluation.suites`, and what is wrong with both."""
        recipe = self.recipe
        return resolve_sets(
            recipe.evaluation, recipe.data, recipe.reward, recipe.rollout.max_response_length
        )

    @functools.cached_property
    def training_rows(self) -> tuple[list[FirstRows], list[Problem]]:
        """The first rows of the training files, and what is wrong with these files."""
        setting = FILES if self.recipe.data.generator is None else GENERATOR
        return read_first_rows(setting, self.training_files[0], self.recipe.data)

    @functools.cached_property
    def evaluation_rows(self) -> tuple[list[FirstRows], list[Problem]]:
        """The first rows of the evaluation files, and what is wrong with these files."""
        found: list[FirstRows] = []
        problems: list[Problem] = []
        sets = self.evaluation_sets[0]
        for setting in dict.fromkeys(each.setting for each in sets):
            files = [each.file for each in sets if each.setting == setting]
            rows, wrong = read_first_rows(setting, files, self.recipe.data)
            found, problems = found + rows, problems + wrong
        return found, problems


@dataclass(frozen=True)
class SftFacts(RunFacts):
    """Of a recipe of supervised fine-tuning."""

    recipe: SftRecipe

    @property
    def step_in_words(self) -> str:
        """Conversations and tokens."""
        size, limit = self.recipe.batch.global_batch_size, self.recipe.data.max_length
        return f"{size} conversations of up to {limit} tokens, {size * limit:,} in all"

    @functools.cached_property
    def training_files(self) -> tuple[list[ConversationFile], list[Problem]]:
        """The files of `data.train_files`, and what is wrong with its entries."""
        recipe = self.recipe
        return conversation_files("data.train_files", recipe.data.train_files, recipe.data)

    @functools.cached_property
    def held_out_files(self) -> tuple[list[ConversationFile], list[Problem]]:
        """The files of `evaluation.files`, and what is wrong with its entries."""
        recipe = self.recipe
        return conversation_files("evaluation.files", recipe.evaluation.files, recipe.data)


@dataclass(frozen=True)
class PretrainFacts(RunFacts):
    """Of a recipe of pretraining."""

    recipe: PretrainRecipe
    balances_experts = True

    @property
    def step_in_words(self) -> str:
        """Sequences and tokens."""
        sequences, length = self.recipe.batch.global_batch_size, self.recipe.data.sequence_length
        return f"{sequences} sequences x {length} tokens, {sequences * length:,} in all"


RunCheck = Callable[[RunFacts], Iterator[Problem]]
"""A check of any stage, as the tables of this room have them: they hand each function what it looks
at."""
Check = Callable[[Facts], Iterator[Problem]]
"""A check of reinforcement learning."""


_FACTS: dict[type[RunSettings], type[RunFacts]] = {
    Recipe: Facts,
    PretrainRecipe: PretrainFacts,
    SftRecipe: SftFacts,
}


@typing.overload
def gather_facts(
    recipe: Recipe, world_size: int, target: Target = "here"
) -> tuple[Facts, list[Problem]]: ...


@typing.overload
def gather_facts(
    recipe: RunSettings, world_size: int, target: Target = "here"
) -> tuple[RunFacts, list[Problem]]: ...


def gather_facts(
    recipe: RunSettings, world_size: int, target: Target = "here"
) -> tuple[RunFacts, list[Problem]]:
    """Reads config.json.

    Args:
        recipe: The settings.
        world_size: Ranks of the run.
        target: The machine that the run is for.

    Returns:
        The facts, and what is wrong with the model's directory.
    """
    hf_config, problems = _read_hf_config(recipe.model)
    return _FACTS[type(recipe)](recipe, world_size, hf_config, target), problems


def cuda_available() -> bool:
    """Whether this machine has a CUDA device."""
    import torch  # Here, because most recipes need no device to be checked.

    return torch.cuda.is_available()


def _read_hf_config(model: ModelConfig) -> tuple[dict[str, Any], list[Problem]]:
    path = model.path

    def wrong(
        problem: str, fix: str, kind: Literal["recipe", "machine"] = "recipe"
    ) -> tuple[dict[str, Any], list[Problem]]:
        return {}, [Problem("model.path", path, problem, fix, kind)]

    fix = (
        "give the local directory of a Hugging Face model (config.json, *.safetensors, tokenizer), "
        "or a checkpoint of a run or of Megatron-LM"
    )
    if not path:
        return wrong("no model is given", fix)
    if not Path(path).is_dir():
        return wrong("there is no such directory", fix, "machine")
    try:
        content = read_config(path, model.tokenizer_path)
    except UnmappedModel as error:
        found = (Problem("model.path", path, *unsupported) for unsupported in error.problems)
        return {}, list(found)
    except InputError as error:
        problem, _, fix = str(error).rpartition("; ")
        return wrong(problem, fix)
    except ValueError as error:
        return wrong(f"its config.json is not valid JSON ({error})", "fetch the model again")
    except OSError as error:
        reason = f"its config.json cannot be read ({error.strerror})"
        return wrong(reason, "give this user the right to read it", "machine")
    if content is None:
        return wrong("it has no config.json", fix)
    if not isinstance(content, dict):
        return wrong("its config.json is not an object", "fetch the model again")
    return content, []
