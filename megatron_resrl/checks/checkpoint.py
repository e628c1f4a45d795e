"""Saving and resuming."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_resrl.checks.facts import Check
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import CheckpointConfig
from megatron_resrl.errors import closest
from megatron_resrl.evaluation.answers import answer_reader
from megatron_resrl.evaluation.metrics import question_values
from megatron_resrl.evaluation.sets import SetSettings

_EVALUATION = "eval/"


def evaluation_metric_names(sets: Sequence[SetSettings]) -> list[str]:
    """Names of the metrics that an evaluation of these sets logs, without `eval/`."""
    return [
        f"{each.name}/{kind}"
        for each in sets
        for kind in (
            *_named_values(each),
            *("response_length", "questions", "dropped", "timeouts", "truncated"),
        )
    ]


def _named_values(settings: SetSettings) -> list[str]:
    """Of one question without a right answer."""
    size = settings.samples_per_prompt
    ks = [k for k in settings.pass_at if 1 <= k <= size]
    nothing = [[""] * size]
    answers = None if answer_reader(settings.reward) is None else nothing
    return list(question_values([[0.0] * size], ks, answers, nothing))


def check_best_metric(
    checkpoint: CheckpointConfig, evaluation_every: int, measured: Sequence[str], steps: int
) -> Iterator[Problem]:
    """Only metrics of evaluations are known beforehand: `measured`, without `eval/`."""
    name = checkpoint.best_metric
    if name is None or not name.startswith(_EVALUATION):
        return
    known = [f"{_EVALUATION}{each}" for each in measured]
    if name not in known:
        meant = closest(name, known) or ", ".join(known) or "give evaluation.files"
        problem = "evaluations of this recipe do not log it"
        yield Problem("checkpoint.best_metric", name, problem, f"did you mean {meant}?")
        return
    save_every = checkpoint.save_every
    if save_every >= steps:
        return  # Only the last step is saved, which is evaluated.
    if save_every and not evaluation_every:
        yield Problem(
            "checkpoint.best_metric",
            name,
            "it is measured before the first and after the last step only (evaluation.every 0), "
            "so that no other checkpoint can be best",
            f"evaluate at the steps that are saved, e.g. evaluation.every {save_every}",
        )
    elif save_every and evaluation_every % save_every and save_every % evaluation_every:
        yield Problem(
            "checkpoint.best_metric",
            name,
            f"few checkpoints have it: evaluation.every is {evaluation_every} and "
            f"checkpoint.save_every {save_every}",
            "let one be a multiple of the other",
        )


CHECKPOINT_CHECKS: tuple[Check, ...] = (
    lambda facts: check_best_metric(
        facts.recipe.checkpoint,
        facts.recipe.evaluation.every,
        evaluation_metric_names(facts.evaluation_sets[0]),
        facts.recipe.steps,
    ),
)
