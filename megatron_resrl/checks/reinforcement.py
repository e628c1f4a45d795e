"""What training with reinforcement learning, and evaluation, check of their recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_resrl.checks.algorithm import ALGORITHM_CHECKS
from megatron_resrl.checks.checkpoint import CHECKPOINT_CHECKS
from megatron_resrl.checks.collection import COLLECTION_CHECKS
from megatron_resrl.checks.correction import CORRECTION_CHECKS
from megatron_resrl.checks.data import DATA_ROW_CHECKS, RUN_ROW_CHECKS
from megatron_resrl.checks.environments import ENVIRONMENT_CHECKS
from megatron_resrl.checks.every_stage import COMMAND_CHECKS, STAGE_CHECKS
from megatron_resrl.checks.facts import Check
from megatron_resrl.checks.files import DATA_CHECKS, RUN_CHECKS
from megatron_resrl.checks.model import RESPONSE_CHECKS
from megatron_resrl.checks.notes import NOTES
from megatron_resrl.checks.rewards import ANSWER_CHECKS, REWARD_CHECKS
from megatron_resrl.checks.teacher import TEACHER_CHECKS
from megatron_resrl.checks.vllm import VLLM_CHECKS
from megatron_resrl.checks.weights import WEIGHT_CHECKS
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema_questions import FileEntry

_SHARED_CHECKS: tuple[Check, ...] = (
    *WEIGHT_CHECKS,
    *COMMAND_CHECKS,
    *RESPONSE_CHECKS,
    *VLLM_CHECKS,
    *RUN_CHECKS,
    *REWARD_CHECKS,
    *RUN_ROW_CHECKS,
    *ENVIRONMENT_CHECKS,
)
"""What training and evaluation both need."""

TRAIN_CHECKS: tuple[Check, ...] = (
    *_SHARED_CHECKS,
    *ALGORITHM_CHECKS,
    *TEACHER_CHECKS,
    *CORRECTION_CHECKS,
    *DATA_CHECKS,
    *ANSWER_CHECKS,
    *DATA_ROW_CHECKS,
    *CHECKPOINT_CHECKS,
    *COLLECTION_CHECKS,
    *STAGE_CHECKS,
    *NOTES,
)
"""Of `train`."""


def _check_anything_to_evaluate(entries: Sequence[FileEntry]) -> Iterator[Problem]:
    if not entries:
        fix = "give files with questions, or a folder of them, or name evaluation.suites"
        yield Problem("evaluation.files", (), "there is nothing to evaluate", fix)


EVAL_CHECKS: tuple[Check, ...] = (
    *_SHARED_CHECKS,
    lambda facts: _check_anything_to_evaluate(facts.recipe.evaluation.entries),
)
"""Of `eval`."""
