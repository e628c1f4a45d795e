"""Held-out questions: sampled, graded, and reduced to avg@k and pass@k."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_resrl.config.question_files import question_files
from megatron_resrl.config.schema import Recipe
from megatron_resrl.data.prompts import Prompt
from megatron_resrl.evaluation.metrics import evaluation_metrics
from megatron_resrl.rollout.actor import Actor, open_actor, read_prompts
from megatron_resrl.rollout.collect import grade_responses
from megatron_resrl.rollout.engine import SamplingParams
from megatron_resrl.rollout.finite import require_finite_responses
from megatron_resrl.rollout.sampling import EVALUATION_STREAM

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSet:
    """The questions of one file."""

    name: str
    """The file's name without its ending, or the one given in `evaluation.files`."""
    prompts: list[Prompt]


def load_evaluation_sets(
    recipe: Recipe, tokenizer: Any, vocab_size: int | None = None
) -> list[EvaluationSet]:
    """Reads the recipe's evaluation files. `vocab_size`: see `read_prompts`."""
    sets = []
    for file in question_files("evaluation.files", recipe.evaluation.files, recipe.data):
        prompts, (dropped,) = read_prompts(
            [file], recipe.data, tokenizer, recipe.evaluation.max_prompts, vocab_size=vocab_size
        )
        logger.info("%s: %d questions, %d dropped as too long", file.path, len(prompts), dropped)
        sets.append(EvaluationSet(file.name, prompts))
    return sets


def evaluate_sets(sets: Sequence[EvaluationSet], actor: Actor, recipe: Recipe) -> dict[str, float]:
    """Samples and grades every set with the policy's current weights. Collective.

    The random numbers are the same at every call, so that two evaluations of one run differ by
    the weights alone. Scores are the verifier's, without length scaling.

    Returns:
        `eval/<set>/avg@<n>`, `eval/<set>/pass@<k>` and `eval/<set>/response_length`.
    """
    settings = recipe.evaluation
    sampling = SamplingParams(
        max_new_tokens=recipe.rollout.max_response_length,
        stop_token_ids=actor.stop_token_ids,
        n=settings.samples_per_prompt,
        temperature=settings.temperature,
        top_p=settings.top_p,
    )
    metrics: dict[str, float] = {}
    for number, each in enumerate(sets):
        seed = (recipe.seed, EVALUATION_STREAM, number)
        responses = actor.player.begin(each.prompts, sampling, seed=seed).result()
        require_finite_responses(
            each.prompts,
            responses,
            actor.policy,
            recipe.model.path,
            phase=f"evaluation of {each.name}",
        )
        samples = grade_responses(
            each.prompts, responses, actor.grader, actor.tokenizer, recipe.reward
        )
        scores: list[list[float]] = [[] for _ in each.prompts]
        for sample in samples:
            scores[sample.group].append(sample.score)
        lengths = [sample.response.drawn for sample in samples]
        found = evaluation_metrics(scores, settings.pass_at)
        found["response_length"] = sum(lengths) / len(lengths)
        metrics |= {f"eval/{each.name}/{name}": value for name, value in found.items()}
    return metrics


def evaluate(recipe: Recipe) -> dict[str, float]:
    """The `eval` command: evaluates the model of `recipe.model.path`.

    Prints the metrics and writes them to `<output_dir>/evaluation.json`.
    """
    with open_actor(recipe, trainable=False) as actor:
        sets = load_evaluation_sets(recipe, actor.tokenizer, actor.policy.hf_config.vocab_size)
        metrics = evaluate_sets(sets, actor, recipe)
        if dist.get_rank() == 0:
            directory = Path(recipe.output_dir)
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "evaluation.json").write_text(json.dumps(metrics, indent=2) + "\n")
            for name, value in metrics.items():
                print(f"{name}: {value:.4f}")
    return metrics
