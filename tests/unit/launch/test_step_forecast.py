"""What `launch` knows of the seconds of a step."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_resrl.checks.facts import gather_facts
from megatron_resrl.config.load import load_recipe
from megatron_resrl.config.stages import STAGES, Stage
from megatron_resrl.launch.forecast import step_seconds
from megatron_resrl.launch.options import LaunchOptions

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.mark.parametrize(
    ("recipe", "model", "stage", "ranks", "nodes"),
    [
        ("pretrain_to_rl/llama_8b/pretrain.yaml", "llama-3-8b", "pretrain", 8, 1),
        ("pretrain_to_rl/llama_8b/sft.yaml", "llama-3-8b", "sft", 8, 1),
        # Two of four nodes train.
        ("math_qwen3_8b_32xh100_async/recipe.yaml", "qwen3-8b", "train", 16, 4),
    ],
)
def test_step_seconds_are_those_of_plan(recipe, model, stage: Stage, ranks, nodes) -> None:
    settings = [f"--model.path={EXAMPLES / 'models' / model}"]
    loaded = load_recipe(str(EXAMPLES / recipe), settings, STAGES[stage])
    facts, problems = gather_facts(loaded, ranks, "cuda")
    assert not problems
    options = LaunchOptions(nodes=nodes, gpus_per_node=8)
    one = step_seconds(facts, options)
    assert one is not None
    assert one > 1
    slower = step_seconds(facts, LaunchOptions(nodes=nodes, gpus_per_node=8, gpu="a100-80gb"))
    assert slower is not None
    assert slower > 1.2 * one
