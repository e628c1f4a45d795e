"""What only runs on CUDA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_resrl.checks.facts import RunCheck
from megatron_resrl.checks.fp8 import FP8_CHECKS
from megatron_resrl.config.problems import Problem

_CUDA_ONLY_OPTIMIZER = ("optimizer_cpu_offload", "use_precision_aware_optimizer")


def _check_optimizer_device(
    optimizer_fields: Mapping[str, Any], has_cuda: bool
) -> Iterator[Problem]:
    asked = [name for name in _CUDA_ONLY_OPTIMIZER if optimizer_fields.get(name)]
    if asked and not has_cuda:
        for name in asked:
            setting = f"optimizer.megatron.{name}"
            problem = "it needs CUDA, which is absent"
            yield Problem(setting, True, problem, "leave it out", "machine")


PRECISION_CHECKS: tuple[RunCheck, ...] = (
    *FP8_CHECKS,
    lambda facts: _check_optimizer_device(facts.recipe.optimizer.megatron, facts.has_cuda),
)
