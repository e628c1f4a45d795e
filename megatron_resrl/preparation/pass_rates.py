"""How often a model answered each question, from the responses that an evaluation kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_resrl.data.question_files import without_template
from megatron_resrl.data.rows import read_rows
from megatron_resrl.errors import InputError
from megatron_resrl.platform.run_files import read_object
from megatron_resrl.preparation.overlap import normalised
from megatron_resrl.preparation.question import Question, required


def read_pass_rates(paths: Sequence[str]) -> Callable[[Question], float | None]:
    """Reads kept responses.

    Args:
        paths: Files that `evaluation.keep_responses` wrote, JSON lines or Parquet; questions of
            several count together. The summary beside a file's folder says which words its
            prompts have around the questions.

    Returns:
        The share of correct responses (score above 0) to a question; None: it was not asked.

    Raises:
        InputError: A file cannot be read, or holds something else.
    """
    counts: dict[str, tuple[int, int]] = {}
    for path in paths:
        around = _prompt_template(Path(path))
        for where, line in read_rows(Path(path)):
            responses = required(line, where, "responses")
            key = normalised(without_template(str(required(line, where, "question")), around))
            try:
                correct = sum(float(each["score"]) > 0 for each in responses)
            except (TypeError, KeyError, ValueError):
                raise InputError(
                    f"{where}: its responses have no scores; give the file of an evaluation, "
                    "OUTPUT_DIR/evaluation/NAME.jsonl or .parquet"
                ) from None
            before = counts.get(key, (0, 0))
            counts[key] = before[0] + correct, before[1] + len(responses)
    rates = {key: correct / asked for key, (correct, asked) in counts.items()}
    return lambda question: rates.get(normalised(question.asked))


def _prompt_template(path: Path) -> str | None:
    """The `prompt_template` of a file's set, from the summary of the evaluation."""
    folder = path.absolute().parent
    content = read_object(folder.parent / f"{folder.name}.json") or {}
    settings = content.get("sets", {}).get(path.stem, {}).get("settings", {})
    return settings.get("prompt_template")
