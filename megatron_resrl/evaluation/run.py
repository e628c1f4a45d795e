"""Held-out questions: sampled, graded, and reduced to avg@k and pass@k."""

from __future__ import annotations

import datetime
import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from megatron.core import parallel_state

from megatron_resrl.checkpoint.code_version import code_version
from megatron_resrl.config.load import recipe_yaml
from megatron_resrl.config.schema import DataConfig, Recipe, RewardConfig
from megatron_resrl.data.prompts import read_prompts
from megatron_resrl.data.question_files import QuestionFile
from megatron_resrl.data.rows import read_rows
from megatron_resrl.data.tokenizer import load_tokenizer
from megatron_resrl.evaluation.plot import EXTRA, has_matplotlib, plot_evaluation
from megatron_resrl.evaluation.report import Intervals, evaluation_lines
from megatron_resrl.evaluation.results import (
    SetResult,
    keep_responses,
    unused_names,
)
from megatron_resrl.evaluation.sets import EvaluationSet, SetSettings, evaluation_sets
from megatron_resrl.evaluation.unfinished import Unfinished, unfinished_evaluation
from megatron_resrl.platform.distributed import process_groups
from megatron_resrl.platform.hosts import require_alike_hosts
from megatron_resrl.platform.phases import named_phase
from megatron_resrl.policy.model_config import read_hf_config
from megatron_resrl.rewards.parts import named_functions
from megatron_resrl.rollout.collect import grade_responses
from megatron_resrl.rollout.engine import GenerationRequest, SamplingParams
from megatron_resrl.rollout.finite import require_finite_responses
from megatron_resrl.rollout.sampling import EVALUATION_STREAM
from megatron_resrl.rollout.worker import RolloutWorker, open_worker

logger = logging.getLogger(__name__)


@named_phase("data")
def load_evaluation_sets(
    wanted: Sequence[SetSettings], data: DataConfig, tokenizer: Any, vocab_size: int | None = None
) -> list[EvaluationSet]:
    """Reads the questions of evaluation sets.

    Args:
        wanted: From `evaluation_sets`.
        data: How questions become prompts.
        tokenizer: The model's.
        vocab_size: See `read_prompts`.
    """
    sets = []
    for settings in wanted:
        file, limit = settings.file, settings.max_prompts
        prompts, _ = read_prompts([file], data, tokenizer, limit, vocab_size=vocab_size)
        rows = _number_of_rows(file, limit)
        kept = {prompt.record.index for prompt in prompts}
        dropped = tuple(row for row in range(rows) if row not in kept)
        logger.info("%s: %d questions, %d dropped", file.path, len(prompts), len(dropped))
        sets.append(EvaluationSet(settings, prompts, dropped))
    return sets


def _number_of_rows(file: QuestionFile, limit: int | None) -> int:
    if file.generator is not None:
        return file.generator.count(limit)
    return sum(1 for _ in itertools.islice(read_rows(Path(file.path)), limit))


def evaluate_sets(
    sets: Sequence[EvaluationSet],
    worker: RolloutWorker,
    seed: int,
    step: int,
    folder: Path | None,
    ending: str = "jsonl",
) -> dict[str, float]:
    """Samples and grades every set with the policy's current weights. Collective.

    Args:
        sets: Questions.
        worker: Answers and grades them.
        seed: Of the run.
        step: Training steps taken.
        folder: Rank 0 writes the responses to `step_<step>` below it; None: they are not kept.
        ending: `evaluation.response_format`.

    Returns:
        `eval/<set>/<metric>`, see `SetResult.metrics`.
    """
    results = graded_sets(sets, worker, seed)
    if folder is not None and dist.get_rank() == 0:
        keep_responses(results, folder / f"step_{step:06d}", step, ending)
    return _named_metrics(results)


def graded_sets(
    sets: Sequence[EvaluationSet],
    worker: RolloutWorker,
    seed: int,
    unfinished: Unfinished | None = None,
) -> list[SetResult]:
    """All responses to every set, graded. Collective.

    The random numbers are the same at every call, so that two evaluations of one run differ by
    the weights alone. Scores are the verifier's, without length scaling.

    Args:
        sets: Questions.
        worker: Answers and grades them.
        seed: Of the run.
        unfinished: Keeps what is generated; None: nothing does.
    """
    results = []
    for number, each in enumerate(sets):
        settings = each.settings
        sampling = SamplingParams.of(settings, worker.stop_token_ids, settings.samples_per_prompt)
        key = (seed, EVALUATION_STREAM, number)
        request = GenerationRequest.of_prompts(each.prompts, sampling, key)
        if unfinished is None:
            responses = worker.engine.generate(request)
        else:
            responses = unfinished.generate(worker.engine, request, number)
        require_finite_responses(
            each.prompts,
            responses,
            worker.policy,
            worker.model_path,
            phase=f"evaluation of {each.name}",
        )
        grader = worker.graders.of(settings.reward)
        samples = grade_responses(
            each.prompts, responses, grader, worker.tokenizer, settings.reward
        )
        result = SetResult(each, samples)
        if dist.get_rank() == 0:
            result.warn()
        results.append(result)
    return results


def evaluate(recipe: Recipe) -> dict[str, float]:
    """The `eval` command: evaluates the model of `recipe.model.path`.

    Prints the metrics and a table, and writes them to `<output_dir>/evaluation.json` with what they
    were measured with, a picture beside it, and the responses to `<output_dir>/evaluation/<set>`
    with the ending of `evaluation.response_format`. An earlier evaluation's files stay: this one's
    have a number then. What an evaluation that was stopped has generated with the same settings and
    model is used.
    """
    if recipe.rollout.record or recipe.rollout.replay:
        logger.warning(
            "rollout.record and rollout.replay are for training: this evaluation generates its "
            "responses and keeps them as evaluation.keep_responses says"
        )
    with process_groups(recipe.parallel, recipe.seed):
        require_alike_hosts()
        tokenizer = load_tokenizer(recipe.model)
        vocab_size = read_hf_config(recipe.model.path, recipe.model.tokenizer_path).vocab_size
        wanted = evaluation_sets(
            recipe.evaluation, recipe.data, recipe.reward, recipe.rollout.max_response_length
        )
        sets = load_evaluation_sets(wanted, recipe.data, tokenizer, vocab_size)
        judged = [(each.settings.reward, each.prompts) for each in sets]
        with open_worker(recipe, trainable=False, tokenizer=tokenizer, judged=judged) as worker:
            replicas = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
            unfinished = unfinished_evaluation(recipe, sets, replicas)
            results = graded_sets(sets, worker, recipe.seed, unfinished)
        metrics = _named_metrics(results)
        if dist.get_rank() == 0:
            intervals = {each.questions.name: each.intervals(recipe.seed) for each in results}
            for line in evaluation_lines(results, intervals):
                print(line)
            for path in _write(results, intervals, metrics, recipe):
                print(f"written: {path}")
        if unfinished is not None:
            unfinished.discard()
    return metrics


def _named_metrics(results: Sequence[SetResult]) -> dict[str, float]:
    return {
        f"eval/{result.questions.name}/{name}": value
        for result in results
        for name, value in result.metrics().items()
    }


def _named(reward: RewardConfig) -> str | list[str]:
    return reward.function if not reward.functions else list(named_functions(reward))


def _write(
    results: Sequence[SetResult], intervals: Intervals, metrics: dict[str, float], recipe: Recipe
) -> list[Path]:
    directory = Path(recipe.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    summary, folder = unused_names(directory)
    kept: list[Path] = []
    if recipe.evaluation.keep_responses:
        kept = keep_responses(results, folder, None, recipe.evaluation.response_format)
    now = datetime.datetime.now(datetime.UTC)
    content = {
        "model": str(Path(recipe.model.path).absolute()),
        "date": now.isoformat(timespec="seconds"),
        "code": code_version(),
        "ranks": dist.get_world_size(),
        "metrics": metrics,
        "sets": {
            result.questions.name: {
                **result.counts(),
                "reward": _named(result.questions.settings.reward),
                "settings": result.questions.settings.as_asked(),
                "standard_error": result.standard_error(),
                "intervals": intervals[result.questions.name],
                "dropped_rows": result.questions.dropped,
            }
            for result in results
        },
        "recipe": yaml.safe_load(recipe_yaml(recipe)),
    }
    summary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if not has_matplotlib():
        logger.info("no picture is drawn without matplotlib: %s", EXTRA)
        return [summary, *kept]
    picture = summary.with_suffix(".png")
    plot_evaluation(results, intervals, str(picture))
    return [summary, picture, *kept]
