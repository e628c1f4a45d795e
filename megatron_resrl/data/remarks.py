"""What a user should know of the questions before a run spends time on them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from megatron_resrl.data.records import PromptRecord


def repetitions(records: Sequence[PromptRecord]) -> str | None:
    """Says how many questions come more than once, and whether with other answers; None: none."""
    places: defaultdict[str, list[PromptRecord]] = defaultdict(list)
    for record in records:
        places[json.dumps([record.messages, record.tools], default=repr)].append(record)
    repeated = [found for found in places.values() if len(found) > 1]
    if not repeated:
        return None
    most = max(repeated, key=len)
    said = (
        f"{len(repeated)} of {len(places)} questions come more than once, up to {len(most)} times "
        f"({most[0]} and {most[1]})"
    )
    answers = [{repr(record.ground_truth) for record in found} for found in repeated]
    differing = sum(len(found) > 1 for found in answers)
    return f"{said}, {differing} of them with different answers" if differing else said


def too_few(questions: int, prompts_per_step: int) -> str | None:
    """Says that a step asks every question several times; None: it does not."""
    if questions >= prompts_per_step:
        return None
    times = prompts_per_step / questions
    return (
        f"the files have {questions} question{'s' if questions > 1 else ''}: every one comes "
        f"{times:.4g} times in one step"
    )
