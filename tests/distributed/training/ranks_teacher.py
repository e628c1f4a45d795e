"""Steps of distillation from a folder and from a server, in one layout after the other.

Arguments: folder of the policy, folder of the teacher, url of its server. Rank 0 prints one line of
JSON per layout and teacher, with the metrics of two steps.
"""

from __future__ import annotations

import json
import os
import sys

import torch.distributed as dist
from layouts import LAYOUTS, begin_layout
from one_step import take_step
from tiny_rollouts import rollouts

from megatron_resrl.config.schema import (
    AlgorithmConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    Recipe,
)
from megatron_resrl.config.schema_teacher import TeacherConfig
from megatron_resrl.platform import distributed as platform
from megatron_resrl.rollout.worker import build_policy
from megatron_resrl.training.algorithm import algorithm_of
from megatron_resrl.training.other_models import other_models


def main() -> None:
    policy_folder, teacher_folder, url = sys.argv[1:]
    teachers = {"path": TeacherConfig(path=teacher_folder), "url": TeacherConfig(url=url)}
    for layout, parallel in LAYOUTS[int(os.environ["WORLD_SIZE"])].items():
        settings = ParallelConfig(timeout_minutes=1.0, **parallel)
        begin_layout(settings, seed=0)
        for kind, teacher in teachers.items():
            recipe = Recipe(
                model=ModelConfig(path=policy_folder),
                parallel=settings,
                precision=PrecisionConfig("fp32"),
                optimizer=OptimizerConfig(lr=1e-2, lr_warmup_steps=0, adam_eps=1e-3),
                algorithm=AlgorithmConfig(
                    name="distillation", kl_coefficient=0.1, kl_in="loss", updates_per_step=2
                ),
                teacher=teacher,
            )
            policy = build_policy(recipe)
            others = other_models(algorithm_of(recipe), teacher, policy)
            samples, _ = rollouts(masked=True)
            steps = [take_step(policy, recipe, samples, n, others=others).metrics for n in (1, 2)]
            if dist.get_rank() == 0:
                print(json.dumps({"layout": layout, "teacher": kind, "steps": steps}))
    platform.shutdown()


if __name__ == "__main__":
    main()
