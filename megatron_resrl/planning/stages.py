"""The stages that can be planned: what must be right of their recipes, and what their jobs are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from megatron_resrl.checks.algorithm import PASS_CHECKS
from megatron_resrl.checks.experts import EXPERT_CHECKS
from megatron_resrl.checks.facts import RunCheck
from megatron_resrl.checks.model import MODEL_CHECKS, RESPONSE_CHECKS
from megatron_resrl.checks.parallel import PARALLEL_CHECKS, TRAINING_BATCH_CHECKS
from megatron_resrl.checks.passthrough import check_passthrough
from megatron_resrl.checks.precision import PRECISION_CHECKS
from megatron_resrl.checks.pretrain import PRETRAIN_BATCH_CHECKS
from megatron_resrl.checks.sft import SFT_BATCH_CHECKS
from megatron_resrl.checks.values import check_ranges
from megatron_resrl.checks.vllm import VLLM_CHECKS
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import Recipe, RunSettings, VllmConfig
from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.config.schema_sft import SftRecipe
from megatron_resrl.planning.job import Job
from megatron_resrl.planning.rl_job import RlJob
from megatron_resrl.planning.supervised_job import PretrainJob, SftJob


def _check_cpu_only(vllm: VllmConfig) -> Iterator[Problem]:
    fix = "leave it out; a plan is for GPUs"
    for name, value in vllm.environment.items():
        if name.startswith("VLLM_CPU_"):
            yield Problem(f"vllm.environment.{name}", value, "only vLLM on a CPU reads it", fix)
    for name, value in vllm.arguments.items():
        if name.lstrip("-") == "device" and value == "cpu":
            yield Problem(f"vllm.arguments.{name}", value, "it keeps vLLM off the GPUs", fix)


@dataclass(frozen=True)
class PlannedStage:
    """What a plan needs to know of a stage of training."""

    checks: tuple[Callable[[Any], Iterator[Problem]], ...]
    """Of model, layout, batch and precision, but of no file besides config.json."""
    job: Callable[..., Job]
    """Recipe, model, cluster and options -> the job."""
    options: frozenset[str]
    """Options of `plan` that only some stages have, and this one has."""


_FIRST_CHECKS: tuple[RunCheck, ...] = (check_ranges, *MODEL_CHECKS)
_LAST_CHECKS: tuple[RunCheck, ...] = (*EXPERT_CHECKS, *PRECISION_CHECKS, check_passthrough)

STAGES_TO_PLAN: dict[type[RunSettings], PlannedStage] = {
    Recipe: PlannedStage(
        (
            *_FIRST_CHECKS,
            *RESPONSE_CHECKS,
            *PARALLEL_CHECKS,
            *TRAINING_BATCH_CHECKS,
            *PASS_CHECKS,
            *_LAST_CHECKS,
            *VLLM_CHECKS,
            lambda facts: _check_cpu_only(facts.recipe.vllm),
        ),
        RlJob.of,
        frozenset({"prompt_tokens", "response_tokens", "server_gpus", "decode_host_ms"}),
    ),
    SftRecipe: PlannedStage(
        (*_FIRST_CHECKS, *PARALLEL_CHECKS, *SFT_BATCH_CHECKS, *_LAST_CHECKS),
        SftJob.of,
        frozenset({"prompt_tokens", "response_tokens"}),
    ),
    PretrainRecipe: PlannedStage(
        (*_FIRST_CHECKS, *PARALLEL_CHECKS, *PRETRAIN_BATCH_CHECKS, *_LAST_CHECKS),
        PretrainJob.of,
        frozenset({"document_tokens"}),
    ),
}
"""By the kind of recipe."""

STAGE_OPTIONS = frozenset().union(*(stage.options for stage in STAGES_TO_PLAN.values()))
"""Options that not all stages have."""
