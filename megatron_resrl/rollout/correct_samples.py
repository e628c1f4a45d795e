"""Correct responses of a recording, as conversations for supervised fine-tuning.

That is rejection fine-tuning: sample, keep what is correct, learn it. The exact tokens are
written, so that nothing is decoded and encoded again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_resrl.data.conversations import PROMPT_IDS, RESPONSE_IDS, RESPONSE_MASK
from megatron_resrl.errors import InputError
from megatron_resrl.observe.json_lines import json_line
from megatron_resrl.rollout.group_table import Group
from megatron_resrl.rollout.recording import Recording


def write_correct_samples(
    recording: str, output: str, *, min_score: float = 1.0, per_prompt: int = 1
) -> str:
    """Writes correct responses of a rollout recording as a file to fine-tune on.

    Args:
        recording: Directory that `rollout.record` named.
        output: .jsonl file; it appears whole or not at all.
        min_score: Smallest score of the verifier's that counts as correct.
        per_prompt: Different responses of each group at most, the first ones.

    Returns:
        What was written, for people.

    Raises:
        InputError: There is no recording, it has no scores, no response is correct, or the output
            is there already.
        RecordingError: A file of the recording cannot be read.
    """
    if per_prompt < 1:
        raise InputError(f"--per_prompt = {per_prompt}: give at least 1")
    path = Path(output)
    if path.exists():
        raise InputError(f"--output = {output!r}: it is there already; give another name")
    source = Recording(recording)
    steps = source.steps()
    if not steps:
        raise InputError(f"--recording = {recording!r}: it holds no step_*.parquet")
    incomplete = path.with_name(f"{path.name}.incomplete")
    groups = rows = with_any = 0
    with incomplete.open("w", encoding="utf-8", newline="\n") as file:
        for step in steps:
            for group in source.read(step):
                found = list(_correct(group, step, min_score, per_prompt, source.path(step)))
                file.writelines(map(json_line, found))
                groups, rows, with_any = groups + 1, rows + len(found), with_any + bool(found)
    if not rows:
        incomplete.unlink()
        raise InputError(
            f"--recording = {recording!r}: none of its {groups} groups has a response with a score "
            f"of at least {min_score}; lower --min_score"
        )
    os.replace(incomplete, path)
    return f"{rows} responses of {with_any} of {groups} groups in {len(steps)} steps -> {path}"


def _correct(
    group: Group, step: int, min_score: float, per_prompt: int, path: Path
) -> Iterator[dict[str, Any]]:
    if group.graded_scores is None:
        raise InputError(
            f"{path} has no scores, because an earlier version recorded it; record again"
        )
    taken: set[tuple[int, ...]] = set()
    for response, score in zip(group.responses, group.graded_scores, strict=True):
        if score < min_score or response.token_ids in taken or len(taken) == per_prompt:
            continue
        taken.add(response.token_ids)
        row: dict[str, Any] = {
            "step": step,
            "score": score,
            PROMPT_IDS: list(response.prompt_ids(group.prompt_ids)),
            RESPONSE_IDS: list(response.token_ids),
        }
        if response.response_mask is not None:
            row[RESPONSE_MASK] = list(response.response_mask)
        yield row
