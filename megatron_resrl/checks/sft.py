"""What supervised fine-tuning checks of its recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megatron_resrl.checks.batch import check_batch
from megatron_resrl.checks.checkpoint import check_best_metric
from megatron_resrl.checks.every_stage import COMMAND_CHECKS, STAGE_CHECKS
from megatron_resrl.checks.facts import SftFacts
from megatron_resrl.checks.files import check_files, check_tokenizer
from megatron_resrl.checks.first_rows import FIRST_ROWS, problem_of
from megatron_resrl.checks.notes import note_evaluation, note_warm_up
from megatron_resrl.checks.weights import WEIGHT_CHECKS
from megatron_resrl.config.problems import Problem, against_always
from megatron_resrl.config.schema_questions import FileEntry
from megatron_resrl.config.schema_sft import SftBatchConfig, SftRecipe
from megatron_resrl.config.shared_prompts import shared_prompts_conflict
from megatron_resrl.data.assistant_turns import TurnTokens
from megatron_resrl.data.conversations import ConversationFile, read_conversations
from megatron_resrl.data.file_entries import kind_of
from megatron_resrl.errors import InputError, SettingError

_MEASURED = ("loss", "perplexity", "targets")
"""Of each file of `evaluation.files`."""


def _check_training_files(
    entries: tuple[FileEntry, ...], files: Sequence[ConversationFile]
) -> Iterator[Problem]:
    if not entries:
        fix = "give files with conversations, or a folder of them"
        yield Problem("data.train_files", entries, "there is nothing to train on", fix)
    yield from check_files("data.train_files", [file.path for file in files], "conversations")


def _check_budget(batch: SftBatchConfig, max_length: int) -> Iterator[Problem]:
    budget = batch.tokens_per_micro_batch
    if batch.sequence_packing and budget is not None and budget < max_length - 1:
        yield Problem(
            "batch.tokens_per_micro_batch",
            budget,
            f"a conversation of data.max_length {max_length} tokens does not fit",
            f"use at least {max_length}, or a smaller data.max_length",
        )
    if not batch.sequence_packing and budget is not None:
        problem = "only packed micro-batches have a token budget"
        fix = "leave it out, or set batch.sequence_packing to true"
        yield Problem("batch.tokens_per_micro_batch", budget, problem, fix)


def _check_shared_prefixes(recipe: SftRecipe) -> Iterator[Problem]:
    conflict = shared_prompts_conflict(recipe.model, recipe.precision)
    yield from against_always("batch.shared_prefixes", recipe.batch.shared_prefixes, conflict)


def _check_positions(setting: str, tokens: int, positions: int | None) -> Iterator[Problem]:
    if positions is not None and tokens > positions:
        problem = f"longer than the model's positions (max_position_embeddings {positions})"
        yield Problem(setting, tokens, problem, f"use at most {positions}")


def _of_rows(facts: SftFacts) -> Iterator[Problem]:
    """The first conversations of each file, through the chat template as a run does it."""
    vocab_size = facts.hf_config.get("vocab_size")
    if isinstance(facts.tokenizer, SettingError) or vocab_size is None:
        return
    if list(check_tokenizer(facts)):
        return
    turns = TurnTokens(facts.tokenizer, facts.recipe.data.chat_template_kwargs, vocab_size)
    said: set[str] = set()
    for setting, (files, _) in (
        ("data.train_files", facts.training_files),
        ("evaluation.files", facts.held_out_files),
    ):
        for file in dict.fromkeys(files):
            for problem in _check_rows(setting, file, turns):
                # What is said of a setting is the same for every file.
                if str(problem) not in said:
                    yield problem
                said.add(str(problem))


def _check_rows(setting: str, file: ConversationFile, turns: TurnTokens) -> Iterator[Problem]:
    path = Path(file.path)
    if kind_of(path) is None or not path.is_file() or path.stat().st_size == 0:
        return
    try:
        for conversation in read_conversations(file, FIRST_ROWS):
            turns.sequences(conversation)
    except InputError as error:
        yield problem_of(setting, file.path, error)


def _note_length(facts: SftFacts) -> Iterator[Problem]:
    """How warm-up and evaluations lie in the run; its length in epochs is known with the data."""
    recipe = facts.recipe
    if recipe.epochs is None:
        every, files = recipe.evaluation.every, recipe.evaluation.files
        yield from note_evaluation(every, files, recipe.steps)
        yield from note_warm_up(recipe.optimizer.lr_warmup_steps, recipe.steps)


SFT_BATCH_CHECKS: tuple[Callable[[SftFacts], Iterator[Problem]], ...] = (
    lambda facts: check_batch(facts.recipe.batch.global_batch_size, 1, facts.data_parallel_size),
    lambda facts: _check_budget(facts.recipe.batch, facts.recipe.data.max_length),
    lambda facts: _check_shared_prefixes(facts.recipe),
    lambda facts: _check_positions(
        "data.max_length",
        facts.recipe.data.max_length,
        facts.hf_config.get("max_position_embeddings"),
    ),
)
"""How its batches are shared out and fit the model."""

SFT_CHECKS: tuple[Callable[[SftFacts], Iterator[Problem]], ...] = (
    *WEIGHT_CHECKS,
    *COMMAND_CHECKS,
    lambda facts: iter((*facts.training_files[1], *facts.held_out_files[1])),
    lambda facts: _check_training_files(facts.recipe.data.train_files, facts.training_files[0]),
    lambda facts: check_files(
        "evaluation.files", [file.path for file in facts.held_out_files[0]], "conversations"
    ),
    *SFT_BATCH_CHECKS,
    _of_rows,
    lambda facts: check_best_metric(
        facts.recipe.checkpoint,
        facts.recipe.evaluation.every,
        [f"{file.name}/{kind}" for file in facts.held_out_files[0] for kind in _MEASURED],
        facts.recipe.steps,
    ),
    *STAGE_CHECKS,
    _note_length,
)
"""Of `sft`."""
