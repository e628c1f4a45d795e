"""The product's steps of `reference_cases`, in one layout after the other.

Arguments: folder of the models, output file, then `layout=case` pairs; a layout may come again.
Rank 0 saves the weights after each, and the metrics of its steps.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tiny_families as tiny
import torch
import torch.distributed as dist
from layouts import begin_layout
from one_step import take_step
from reference_advantages import Rollout
from reference_cases import CASES, COMBINATIONS, LAYOUTS, THINK_MARKERS, recipe, rollouts

from megatron_resrl.config.schema import Recipe
from megatron_resrl.data.prompts import Prompt, PromptRecord
from megatron_resrl.platform import distributed as platform
from megatron_resrl.rewards.grader import Grader
from megatron_resrl.rollout.collect import Sample, grade_responses
from megatron_resrl.rollout.engine import Response
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.training.algorithm import algorithm_of
from megatron_resrl.training.other_models import other_models
from megatron_resrl.weights.hugging_face import export_weights


def graded(found: list[Rollout], settings: Recipe) -> list[Sample]:
    """As an environment scores them, and shaped as the recipe says."""
    groups = [[r for r in found if r.group == number] for number in range(found[-1].group + 1)]
    prompts = [
        Prompt(
            PromptRecord(number, [{"role": "user", "content": "q"}], "4", "test", {}),
            group[0].prompt,
        )
        for number, group in enumerate(groups)
    ]
    responses = [[_response(r) for r in group] for group in groups]
    return grade_responses(
        prompts,
        responses,
        Grader("integer", workers=1, timeout_s=1.0),
        tiny.tokenizer(),
        settings.reward,
        length_limit=settings.rollout.max_response_length,
    )


def _response(rollout: Rollout) -> Response:
    return Response(
        rollout.response,
        rollout.engine_log_probs,
        "length" if rollout.cut_off else "stop",
        response_mask=None if all(rollout.drawn) else rollout.drawn,
        score=rollout.score,
    )


def run(models: Path, layout: str, name: str) -> dict[str, Any]:
    case = (CASES | COMBINATIONS)[name]
    settings = recipe(case.settings | LAYOUTS[layout], models / case.family)
    policy = build_policy(settings)
    markers = THINK_MARKERS if settings.resrl.mask_think else None
    others = other_models(algorithm_of(settings), settings.teacher, policy)
    metrics = []
    for step in range(1, settings.steps + 1):
        samples = graded(rollouts(step, case), settings)
        done = take_step(policy, settings, samples, step, think_markers=markers, others=others)
        metrics.append(done.metrics)
    return {"weights": dict(export_weights(policy.modules, policy.hf_config)), "metrics": metrics}


def main() -> None:
    models, output = Path(sys.argv[1]), Path(sys.argv[2])
    found, initialized = {}, None
    for pair in sys.argv[3:]:
        layout, name = pair.split("=", 1)
        parallel = recipe((CASES | COMBINATIONS)[name].settings | LAYOUTS[layout], models).parallel
        if parallel != initialized:
            begin_layout(parallel, seed=0)
            initialized = parallel
        found[pair] = run(models, layout, name)
    if dist.get_rank() == 0:
        torch.save(found, output)
    platform.shutdown()


if __name__ == "__main__":
    main()
