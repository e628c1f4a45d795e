"""What an evaluation found on one set of questions, as numbers and as files."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_resrl.config.schema import EvaluationConfig
from megatron_resrl.evaluation.answers import answer_reader
from megatron_resrl.evaluation.bootstrap import mean_intervals
from megatron_resrl.evaluation.metrics import question_values
from megatron_resrl.evaluation.responses import write_responses
from megatron_resrl.evaluation.sets import EvaluationSet
from megatron_resrl.rollout.collect import Sample, part_metrics

logger = logging.getLogger(__name__)

SUMMARY = "evaluation"
"""`<output_dir>/evaluation.json` and the folder `<output_dir>/evaluation`."""
_NAMED = 8
"""Left out questions that a warning names."""


@dataclass(frozen=True)
class SetResult:
    """All graded responses to a set."""

    questions: EvaluationSet
    samples: Sequence[Sample]

    def scores(self) -> list[list[float]]:
        """[questions][samples]."""
        scores: list[list[float]] = [[] for _ in self.questions.prompts]
        for sample in self.samples:
            scores[sample.group].append(sample.score)
        return scores

    def answers(self) -> list[list[str]] | None:
        """[questions][samples] as the verifier reads them, see `answer_reader`; None: not at all.

        What could not be graded in time or in memory has none: reading it may not end.
        """
        reader = answer_reader(self.questions.settings.reward)
        if reader is None or any(sample.response.score is not None for sample in self.samples):
            return None
        answers: list[list[str]] = [[] for _ in self.questions.prompts]
        for sample in self.samples:
            lost = sample.timed_out or sample.killed
            answers[sample.group].append("" if lost else reader(sample.text))
        return answers

    @functools.cached_property
    def values(self) -> dict[str, list[float]]:
        """[questions] of every metric that is a mean over them, see `question_values`."""
        texts: list[list[str]] = [[] for _ in self.questions.prompts]
        for sample in self.samples:
            texts[sample.group].append(sample.text)
        ks = self.questions.settings.pass_at
        return question_values(self.scores(), ks, self.answers(), texts)

    @property
    def average(self) -> str:
        """Name of the mean score, `avg@<n>`."""
        return f"avg@{self.questions.settings.samples_per_prompt}"

    def intervals(self, seed: int) -> dict[str, tuple[float, float]]:
        """Metric -> its interval over questions, see `mean_intervals`; none with one question."""
        found = mean_intervals(list(self.values.values()), (seed,))
        return dict(zip(self.values, found or (), strict=found is not None))

    def counts(self) -> dict[str, int]:
        """How many questions and responses there were, and what is to be known of them."""
        return {
            "questions": len(self.questions.prompts),
            "dropped": len(self.questions.dropped),
            "responses": len(self.samples),
            "timeouts": sum(sample.timed_out for sample in self.samples),
            "truncated": sum(_cut_off(sample) for sample in self.samples),
        }

    def metrics(self) -> dict[str, float]:
        """The means of `values`, `response_length`, `questions`, `dropped` (out of the average),
        `timeouts` (graded as wrong), `truncated`, a share of the responses, and `part_metrics`."""
        counts, responses = self.counts(), len(self.samples)
        found = {name: sum(each) / len(each) for name, each in self.values.items()}
        found["response_length"] = (
            sum(s.response.num_generated_tokens for s in self.samples) / responses
        )
        found |= {name: float(counts[name]) for name in ("questions", "dropped", "timeouts")}
        found["truncated"] = counts["truncated"] / responses
        return found | part_metrics(self.samples)

    def standard_error(self) -> float | None:
        """Of the mean score, over questions: the samples of one question are not independent.

        None with a single question.
        """
        means = [sum(several) / len(several) for several in self.scores()]
        if len(means) < 2:
            return None
        mean = sum(means) / len(means)
        variance = sum((each - mean) ** 2 for each in means) / (len(means) - 1)
        return math.sqrt(variance / len(means))

    def warn(self) -> None:
        """Says what makes the averages lower, or their denominators smaller, than expected."""
        counts, name = self.counts(), self.questions.name
        dropped = self.questions.dropped
        if dropped:
            rows = ", ".join(map(str, dropped[:_NAMED])) + (", ..." if dropped[_NAMED:] else "")
            logger.warning(
                "evaluation %s: averages are over %d questions; %d more are left out as too long "
                "or unanswered (rows %s, counted from 0)",
                name,
                counts["questions"],
                len(dropped),
                rows,
            )
        late = [sample.prompt.record.index for sample in self.samples if sample.timed_out]
        if late:
            logger.warning(
                "evaluation %s: %d of %d responses were not graded within reward.timeout_s and "
                "count as incorrect; the first answers the question in row %d",
                name,
                len(late),
                counts["responses"],
                late[0],
            )

    def lines(self, step: int | None) -> Iterator[dict[str, Any]]:
        """One record for each question, with its responses."""
        grouped = itertools.groupby(self.samples, key=lambda sample: sample.group)
        answers = self.answers()
        for group, samples in grouped:
            record = self.questions.prompts[group].record
            yield {
                "step": step,
                "row": record.index,
                "question": record.messages[-1]["content"],
                "ground_truth": str(record.ground_truth),
                "responses": [
                    _readable(sample) | ({} if answers is None else {"answer": answers[group][n]})
                    for n, sample in enumerate(samples)
                ],
            }


def responses_folder(evaluation: EvaluationConfig, output_dir: str) -> Path | None:
    """Where responses of evaluations in training are kept; None: they are not."""
    return Path(output_dir) / SUMMARY if evaluation.keep_responses else None


def keep_responses(
    results: Sequence[SetResult], folder: Path, step: int | None, ending: str = "jsonl"
) -> list[Path]:
    """Writes `<folder>/<set>.<ending>` for each set; files that are there get out of the way.

    Args:
        results: Of one evaluation.
        folder: Made if absent.
        step: Training steps taken; None: not in training.
        ending: `evaluation.response_format`.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for result in results:
        path = folder / f"{result.questions.name}.{ending}"
        if path.exists():
            path.rename(_unused(path))
        write_responses(path, result.lines(step))
        paths.append(path)
    return paths


def unused_names(directory: Path) -> tuple[Path, Path]:
    """Where an evaluation writes, so that it overwrites no earlier one.

    Returns:
        `evaluation.json` and the folder `evaluation` for its responses; `evaluation.1.json` and
        `evaluation.1` if the first are taken, and so on.
    """
    for number in itertools.count():
        name = f"{SUMMARY}.{number}" if number else SUMMARY
        summary, folder = directory / f"{name}.json", directory / name
        kept = (*folder.glob("*.jsonl"), *folder.glob("*.parquet"))
        if not summary.exists() and not kept:
            return summary, folder
    raise AssertionError


def _unused(path: Path) -> Path:
    """`path` with the first number before its ending that nobody has taken."""
    names = (path.with_suffix(f".{number}{path.suffix}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _readable(sample: Sample) -> dict[str, Any]:
    record: dict[str, Any] = {
        "response": sample.text,
        "score": sample.score,
        "timed_out": sample.timed_out,
        "finish_reason": sample.response.finish_reason,
        "tokens": sample.response.num_generated_tokens,
    }
    if sample.parts:
        record["functions"] = dict(sample.parts)
    return record if sample.transcript is None else record | {"transcript": sample.transcript}


def _cut_off(sample: Sample) -> bool:
    return sample.response.finish_reason == "length"
