"""Everything that samples and grades: the policy, its engine, graders and tokenizer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_resrl.config.schema import DataConfig, FileEntry, Recipe
from megatron_resrl.data.prompts import Prompt, load_prompts, tokenize_prompts
from megatron_resrl.data.question_files import QuestionFile, question_files
from megatron_resrl.data.tokenizer import load_tokenizer
from megatron_resrl.platform.distributed import initialize, shutdown
from megatron_resrl.platform.ending import Deadline
from megatron_resrl.platform.phases import named_phase
from megatron_resrl.policy.policy import Policy
from megatron_resrl.rewards.grader import Grader
from megatron_resrl.rollout.engine import RolloutEngine
from megatron_resrl.rollout.engines.factory import make_engine
from megatron_resrl.rollout.environments.player import Player, player_of
from megatron_resrl.rollout.ground_truths import require_ground_truths
from megatron_resrl.rollout.sampling import default_stop_tokens


@dataclass(frozen=True)
class Actor:
    """A policy that can answer prompts, and graders that can judge the answers."""

    policy: Policy
    engine: RolloutEngine
    player: Player
    """Answers prompts with the engine, in one turn or several."""
    grader: Grader
    tokenizer: Any
    stop_token_ids: tuple[int, ...]


@contextlib.contextmanager
def open_ranks(recipe: Recipe) -> Iterator[None]:
    """Starts process groups; ends them with the block.

    What hangs in being ended does not keep the process alive, see `Deadline`.
    """
    deadline = Deadline()
    initialize(recipe.parallel, recipe.seed)
    try:
        yield
    finally:
        deadline.start(sys.exc_info()[1])
        shutdown()
        deadline.cancel()


@contextlib.contextmanager
def open_actor(
    recipe: Recipe,
    *,
    trainable: bool,
    tokenizer: Any | None = None,
    prompts: Sequence[Prompt] = (),
) -> Iterator[Actor]:
    """Starts model, engine and grader processes; ends them with the block, see `open_ranks`.

    Process groups, too, where there are none yet.

    Args:
        recipe: Checked settings.
        trainable: With an optimizer.
        tokenizer: The model's, where it is loaded already.
        prompts: Whose ground truths the graders read before the model is loaded, see
            `require_ground_truths`.
    """
    deadline = Deadline()
    ranks = contextlib.nullcontext() if dist.is_initialized() else open_ranks(recipe)
    with ranks, contextlib.ExitStack() as last:
        last.callback(deadline.cancel)
        tokenizer = tokenizer or load_tokenizer(recipe.model)
        with Grader(
            recipe.reward.function,
            workers=recipe.reward.workers,
            timeout_s=recipe.reward.timeout_s,
            memory_gb=recipe.reward.memory_gb,
            log=Path(recipe.output_dir) / "rewards.log",
        ) as grader:
            with named_phase("reading of ground truths"):
                require_ground_truths(recipe, prompts, grader)
            with named_phase("start of the model"):
                policy = Policy.from_recipe(recipe, trainable=trainable)
            stop = recipe.rollout.stop_token_ids or default_stop_tokens(
                recipe.model.path, policy.hf_config, tokenizer
            )
            with named_phase("start of the rollout engine"):
                engine = make_engine(recipe, policy, trainable=trainable)
            try:
                player = player_of(recipe, engine, tokenizer)
                with named_phase("run"):
                    yield Actor(policy, engine, player, grader, tokenizer, stop)
            finally:
                deadline.start(sys.exc_info()[1])
                engine.close()


@named_phase("data")
def read_prompts(
    files: Sequence[FileEntry | QuestionFile],
    data: DataConfig,
    tokenizer: Any,
    limit: int | None = None,
    *,
    vocab_size: int | None = None,
) -> tuple[list[Prompt], list[int]]:
    """Reads prompt files into token ids.

    Args:
        files: See `question_files`.
        data: Columns where a file does not say them, chat template and length limit.
        tokenizer: The model's.
        limit: Read only the first rows of each file.
        vocab_size: Rows of the model's embedding, see `tokenize_prompts`.

    Returns:
        Prompts in file order, and how many of each file were dropped as too long.
    """
    prompts: list[Prompt] = []
    dropped: list[int] = []
    for file in question_files("data.train_files", files, data):
        records = load_prompts(
            file.path,
            prompt_key=file.prompt_key,
            answer_key=file.answer_key,
            answer_pattern=file.answer_pattern,
            system_prompt=file.system_prompt,
            data_source=file.data_source,
            tools_key=data.tools_key,
            limit=limit,
        )
        tokenized = tokenize_prompts(
            records,
            tokenizer,
            max_prompt_length=data.max_prompt_length,
            apply_chat_template=data.apply_chat_template,
            chat_template_kwargs=data.chat_template_kwargs,
            continue_final_message=data.continue_final_message,
            vocab_size=vocab_size,
        )
        prompts += tokenized.prompts
        dropped.append(len(tokenized.dropped))
    return prompts, dropped
