"""The verifiers of reasoning-gym's tasks."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from megatron_resrl.config.ranges import POSITIVE_SHARE
from megatron_resrl.generators.exact_json import from_json, restored
from megatron_resrl.generators.generator import METADATA_KEY, OPTIONS_KEY
from megatron_resrl.generators.reasoning_gym_tasks import TaskError, require_library, score
from megatron_resrl.rewards.credit import Credit
from megatron_resrl.rewards.final_answer import answer_in, tagged
from megatron_resrl.rewards.ground_truths import shown

Form = Literal["auto", "tags", "boxed", "whole"]


def reasoning_gym_reward(
    response: str,
    ground_truth: Any,
    *,
    prompt: str = "",
    data_source: str = "",
    extra: Any = None,
    answer: Form = "auto",
    threshold: Annotated[float, POSITIVE_SHARE] = 1.0,
) -> Credit:
    r"""What the task's own verifier gives the answer, as reward; as score only where it suffices.

    A response without an answer gets 0; so does one whose answer makes the verifier raise, or
    return no finite number, which is printed.

    Args:
        response: Decoded text.
        ground_truth: The task's answer; None where it has none and its verifier needs none.
        prompt: Not used.
        data_source: Not used.
        extra: The row's other columns, of which `metadata` and `task_options` are the task's.
        answer: `auto`: what the last `<answer></answer>` holds, or else the last `\boxed{}`;
            `tags` or `boxed`: only that; `whole`: the whole response.
        threshold: The least value that counts as correct.

    Raises:
        ValueError: The row is not of a task of reasoning-gym.
    """
    task, options, metadata = _row(extra or {})
    text = _answer(response, answer)
    if not text:
        return Credit(0.0, 0.0)
    try:
        value = score(task, options, text, {"answer": ground_truth, METADATA_KEY: metadata})
    except TaskError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # Verifiers raise all kinds of them on what is no answer.
        return _nothing(task, text, f"raises {type(error).__name__}: {error}")
    if not math.isfinite(value):
        return _nothing(task, text, f"returns {value}")
    return Credit(value if value >= threshold else 0.0, value)


def check_ground_truth(value: Any) -> None:
    """Accepts any ground truth: some tasks have questions without an answer of their own."""


def check_columns(extra: Mapping[str, Any]) -> None:
    """Refuses a row that is not of a task of reasoning-gym.

    Raises:
        ValueError: See `reasoning_gym_reward`.
    """
    _row(extra)


def check_options(**options: Any) -> None:
    """Refuses the reward where the library is not installed.

    Raises:
        LibraryMissing: It is not.
    """
    require_library()


def prepare() -> None:
    """Imports the library."""
    require_library()


def _row(extra: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """The task, its options as JSON, and the metadata of a question."""
    content = extra.get(METADATA_KEY)
    try:
        metadata = from_json(content) if isinstance(content, str) else restored(content)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("source_dataset"), str):
        raise ValueError(
            f"the column {METADATA_KEY} is {shown(content)}, not what a task of reasoning-gym says "
            "of its question: take questions of data.generator, or another reward function"
        )
    return metadata["source_dataset"], extra.get(OPTIONS_KEY) or "{}", metadata


def _answer(response: str, form: Form) -> str:
    if form == "whole":
        return response.strip()
    in_tags = tagged(response) if form in ("auto", "tags") else None
    if in_tags is not None or form == "tags":
        return (in_tags or "").strip()
    return answer_in(response, "boxed")


def _nothing(task: str, answer: str, problem: str) -> Credit:
    print(f"the verifier of {task} {problem}, given {shown(answer)}: 0", file=sys.stderr)
    return Credit(0.0, 0.0)
