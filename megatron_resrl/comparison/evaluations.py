"""Evaluations that are on disk: of the command `eval`, or of a training run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_resrl.config.yaml_source import read_yaml
from megatron_resrl.errors import InputError
from megatron_resrl.evaluation.metrics import question_values
from megatron_resrl.evaluation.responses import read_responses
from megatron_resrl.platform.run_files import METRICS, read_lines, read_object

_STEP = re.compile(r"step_(\d{6,})")
_AT_K = re.compile(r"(?:pass|cons)[@^](\d+)")
_EARLIER = re.compile(r".*\.\d+")
"""Name of a set's file that a later evaluation has moved out of its way."""


@dataclass(frozen=True)
class SetResponses:
    """All graded responses to a set, one record for each question."""

    name: str
    records: Mapping[int, Mapping[str, Any]]
    """Row in the set's file -> its line, as docs/evaluation.md describes it."""

    @property
    def samples(self) -> list[int]:
        """Numbers of responses that questions have."""
        return sorted({len(each["responses"]) for each in self.records.values()})

    @property
    def tokens(self) -> float:
        """Mean length of the responses."""
        lengths = [r["tokens"] for each in self.records.values() for r in each["responses"]]
        return sum(lengths) / len(lengths)

    def values(self, metric: str, rows: Sequence[int]) -> list[float]:
        """The metric of each question of `rows`.

        Args:
            metric: `avg`, or a name of `question_values` such as `pass@8`.
            rows: Of questions that there are.

        Raises:
            InputError: The responses do not give this metric.
        """
        responses = [self.records[row]["responses"] for row in rows]
        scores = [[each["score"] for each in several] for several in responses]
        answers = None
        if all("answer" in each for several in responses for each in several):
            answers = [[each["answer"] or "" for each in several] for several in responses]
        match = _AT_K.fullmatch(metric)
        try:
            found = question_values(scores, [int(match[1])] if match else [], answers)
        except ValueError as error:
            raise InputError(f"the set {self.name}: {error}") from None
        name = next(iter(found)) if metric == "avg" else metric
        if name not in found:
            known = "avg, pass@K, and of several samples pass^K, cons@K and distinct_answers"
            raise InputError(f"--metric {metric}: the set {self.name} has {known}")
        return found[name]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one model."""

    place: str
    """What the user named."""
    recipe: Mapping[str, Any]
    """With every setting written out; empty: it is not known."""
    step: int | None
    """Training steps of the run; None: an evaluation of the command, whose model says nothing."""
    model: str
    sets: Mapping[str, SetResponses]
    settings: Mapping[str, Mapping[str, Any]]
    """Set -> how it was sampled and asked."""
    trained_tokens: float | None = None
    """Generated in training up to the step; None: not known."""


def read_evaluation(place: str) -> Evaluation:
    """Reads an evaluation.

    Args:
        place: `evaluation.json`, its folder, the output directory of a training run (its last
            evaluation counts), or the folder of one step, `evaluation/step_000100`.

    Raises:
        InputError: There is no evaluation, or two, or no responses were kept.
    """
    path = Path(place)
    if path.is_file():
        return _of_command(place, path)
    steps = sorted(each for each in (path / "evaluation").glob("step_*") if _has_sets(each))
    summary = path / "evaluation.json"
    if summary.is_file() and steps:
        raise InputError(
            f"{place} holds an evaluation of the command and {len(steps)} of training: name "
            f"{summary} or {steps[-1]}"
        )
    if summary.is_file():
        return _of_command(place, summary)
    if steps:
        return _of_training(place, steps[-1])
    if _STEP.fullmatch(path.name) and _has_sets(path):
        return _of_training(place, path)
    raise InputError(
        f"{place}: there is no evaluation with its responses (evaluation.json, or "
        "evaluation/step_*); evaluate with evaluation.keep_responses: true"
    )


def _of_command(place: str, summary: Path) -> Evaluation:
    content = read_object(summary)
    if content is None or "sets" not in content:
        raise InputError(f"{summary} is no summary of an evaluation")
    folder = summary.with_suffix("")
    if not _has_sets(folder):
        raise InputError(
            f"{place}: {folder} has no responses; evaluate with evaluation.keep_responses: true"
        )
    settings = {name: each.get("settings", {}) for name, each in content["sets"].items()}
    return Evaluation(
        place, content.get("recipe", {}), None, str(content.get("model")), _sets(folder), settings
    )


def _of_training(place: str, folder: Path) -> Evaluation:
    run = folder.parent.parent
    recipe: dict[str, Any] = {}
    if (run / "recipe.yaml").is_file():
        recipe, _ = read_yaml(str(run / "recipe.yaml"))
    step = int(folder.name.removeprefix("step_"))
    rollout, evaluation = recipe.get("rollout", {}), recipe.get("evaluation", {})
    lengths = {
        line["step"]: line["response/length_mean"]
        for line in read_lines(run / METRICS)
        if "response/length_mean" in line and line.get("step", 0) <= step
    }
    per_step = rollout.get("prompts_per_step", 0) * rollout.get("group_size", 0)
    tokens = sum(lengths.values()) * per_step if len(lengths) == step and per_step else None
    sets = _sets(folder)
    shared = {name: evaluation.get(name) for name in ("temperature", "top_p")}
    shared["max_response_length"] = rollout.get("max_response_length")
    return Evaluation(place, recipe, step, str(run), sets, dict.fromkeys(sets, shared), tokens)


def _files(folder: Path) -> list[Path]:
    files = [*folder.glob("*.jsonl"), *folder.glob("*.parquet")]
    return sorted(each for each in files if not _EARLIER.fullmatch(each.stem))


def _has_sets(folder: Path) -> bool:
    return bool(_files(folder))


def _sets(folder: Path) -> dict[str, SetResponses]:
    sets = {}
    for path in _files(folder):
        records = {record["row"]: record for record in read_responses(path)}
        if not records:
            raise InputError(f"{path} holds no responses")
        sets[path.stem] = SetResponses(path.stem, records)
    return sets
