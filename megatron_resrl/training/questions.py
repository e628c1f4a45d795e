"""The questions of a run of reinforcement learning, read before the model is built."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from megatron_resrl.config.schema import DataConfig, ModelConfig, Recipe, RewardConfig
from megatron_resrl.data.digest import digest
from megatron_resrl.data.generated import require_training_questions
from megatron_resrl.data.prompts import Prompt, read_prompts
from megatron_resrl.data.question_files import QuestionFile
from megatron_resrl.data.remarks import repetitions, too_few
from megatron_resrl.data.tokenizer import load_tokenizer
from megatron_resrl.evaluation.run import load_evaluation_sets
from megatron_resrl.evaluation.sets import EvaluationSet, SetSettings
from megatron_resrl.platform.phases import named_phase
from megatron_resrl.policy.model_config import read_hf_config
from megatron_resrl.rewards.parts import parts_of
from megatron_resrl.training.algorithm import weighting_of
from megatron_resrl.training.identity import Identity, function_content, identity_of
from megatron_resrl.user_files import split_name
from megatron_resrl.weights.model_digest import model_digests

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Questions:
    """What a run asks, as one rank reads it."""

    tokenizer: Any
    """The model's."""
    prompts: list[Prompt]
    """To train on."""
    evaluation_sets: list[EvaluationSet]

    def judged(self, reward: RewardConfig) -> list[tuple[RewardConfig, list[Prompt]]]:
        """Rewards and the prompts that each judges: `reward` those of training."""
        sets = self.evaluation_sets
        return [(reward, self.prompts), *((each.settings.reward, each.prompts) for each in sets)]


def read_questions(
    model: ModelConfig,
    data: DataConfig,
    sets: Sequence[SetSettings],
    prompts_per_step: int,
    seed: int,
) -> Questions:
    """Reads and tokenizes all questions.

    Args:
        model: Whose tokenizer and vocabulary.
        data: Training questions, and how questions become prompts.
        sets: Of the evaluation.
        prompts_per_step: `rollout.prompts_per_step`, for messages.
        seed: Of the run; generated questions depend on it.

    Raises:
        InputError: A file cannot be read or used.
    """
    tokenizer = load_tokenizer(model)
    vocab_size = read_hf_config(model.path, model.tokenizer_path).vocab_size
    prompts = _training_prompts(
        data, require_training_questions(data, seed), prompts_per_step, tokenizer, vocab_size
    )
    evaluation = load_evaluation_sets(sets, data, tokenizer, vocab_size)
    return Questions(tokenizer, prompts, evaluation)


def rl_identity(recipe: Recipe, questions: Questions) -> Identity:
    """What gives a run of reinforcement learning its meaning, questions included.

    Raises:
        InputError: A file that a setting names cannot be read.
    """
    sets = questions.evaluation_sets
    contents = {"data: questions": _content(questions.prompts)}
    contents |= {f"evaluation: questions of {each.name}": _content(each.prompts) for each in sets}
    for each in sets:
        if each.settings.reward != recipe.reward:
            contents[f"evaluation: reward of {each.name}"] = _functions(each.settings.reward)
    contents["reward: function"] = _functions(recipe.reward)
    if split_name(recipe.algorithm.name):
        contents["algorithm: class"] = function_content(recipe.algorithm.name)
    weighting = weighting_of(recipe)
    named = (weighting.controlled or weighting).name
    if split_name(named):
        contents["token weighting: class"] = function_content(named)
    if recipe.rollout.environment is not None:
        contents["environment: class"] = function_content(recipe.rollout.environment)
    teacher = recipe.teacher.path
    if teacher is not None:
        tokenizer = recipe.model.tokenizer_path or recipe.model.path
        contents["teacher: weights"] = model_digests(teacher, tokenizer)["weights"]
    return identity_of(recipe, contents, () if weighting.entry.of_resrl else ("resrl.",))


def _functions(reward: RewardConfig) -> str:
    return ", ".join(function_content(part.name) for part in parts_of(reward))


def _content(prompts: list[Prompt]) -> str:
    return f"{len(prompts)}, digest {digest(prompts)[:16]}"


@named_phase("data")
def _training_prompts(
    data: DataConfig,
    files: Sequence[QuestionFile],
    prompts_per_step: int,
    tokenizer: Any,
    vocab_size: int,
) -> list[Prompt]:
    prompts, dropped = read_prompts(files, data, tokenizer, vocab_size=vocab_size)
    logger.info(
        "%d training prompts: one epoch is %.1f steps; %d dropped, longer than "
        "data.max_prompt_length=%d tokens",
        len(prompts),
        len(prompts) / prompts_per_step,
        sum(dropped),
        data.max_prompt_length,
    )
    if dist.get_rank() == 0:
        records = [prompt.record for prompt in prompts]
        for remark in filter(None, [too_few(len(prompts), prompts_per_step), repetitions(records)]):
            logger.warning("training prompts: %s", remark)
    return prompts
