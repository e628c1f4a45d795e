"""What rewards read of the questions' rows is checked before any response exists."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist

from megatron_resrl.data.records import Prompt, PromptRecord
from megatron_resrl.errors import InputError
from megatron_resrl.platform.distributed import gather_objects
from megatron_resrl.rewards.grader import ResponseGrader, RewardError
from megatron_resrl.rewards.parts import Part, require_judged
from megatron_resrl.rewards.registry import columns_check
from megatron_resrl.rollout.refused_rows import refused_rows


def require_ground_truths(
    prompts: Sequence[Prompt],
    graders: Sequence[tuple[Part, ResponseGrader]],
    *,
    environment: str | None = None,
) -> None:
    """Refuses questions whose answer or columns a reward function cannot use. Collective.

    Args:
        prompts: The same on all ranks, which share them.
        graders: The functions of the reward, each with this rank's grader processes.
        environment: Setting `rollout.environment`; an environment scores in the function's place,
            and nothing is asked.

    Raises:
        InputError: On every rank, with the first such row, its value and the remedy; or no function
            judges a row.
        RewardError: On every rank: grader processes cannot be used.
    """
    if environment is not None:
        return
    records = [prompt.record for prompt in prompts]
    sources = dict.fromkeys(record.data_source for record in records)
    require_judged([part for part, _ in graders], sources)
    for part, grader in graders:
        own = [record for record in records if part.judges(record.data_source)]
        _require_columns(own, part)
        _require_usable(own, grader, part)


def _require_columns(records: Sequence[PromptRecord], part: Part) -> None:
    """The same on all ranks, each of which reads all rows."""
    if refused := refused_rows(records, columns_check(part.name), "extra"):
        first, why = refused[0]
        raise InputError(
            f"{part.places.name} = {part.name!r} cannot use {len(refused)} of {len(records)} rows; "
            f"the first, {first}: {why}"
        )


def _require_usable(records: Sequence[PromptRecord], grader: ResponseGrader, part: Part) -> None:
    # Many questions share an answer, and many files are used twice.
    distinct = {repr(record.ground_truth): record.ground_truth for record in records}
    values = list(distinct.values())
    rank, ranks = dist.get_rank(), dist.get_world_size()
    try:
        mine: list[str | None] | RewardError = grader.check_ground_truths(values[rank::ranks])
    except RewardError as error:
        mine = error
    theirs = gather_objects(mine)
    for found in theirs:
        if isinstance(found, RewardError):
            raise found
    wrong = {
        key: why
        for index, key in enumerate(distinct)
        if (why := theirs[index % ranks][index // ranks]) is not None
    }
    bad = [record for record in records if repr(record.ground_truth) in wrong]
    if bad:
        raise InputError(
            f"{part.places.name} = {part.name!r} cannot use the answers of {len(bad)} of "
            f"{len(records)} questions; the first, {bad[0]}: {wrong[repr(bad[0].ground_truth)]}"
        )
