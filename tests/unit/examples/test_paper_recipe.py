"""The paper's recipes hold the paper's numbers; `test_large_recipes.py` runs and plans them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_resrl.config.load import load_recipe
from megatron_resrl.evaluation.suites import SUITES

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "examples/paper/math"
MORE = ("minerva", "olympiad")

PAPER = {
    "data.max_prompt_length": 2048,
    "data.chat_template_kwargs": {"enable_thinking": False},
    "rollout.prompts_per_step": 256,
    "rollout.group_size": 4,
    "rollout.max_response_length": 4096,
    "rollout.temperature": 1.0,
    "rollout.top_p": 1.0,
    "rollout.top_k": 0,
    "optimizer.lr": 1e-6,
    "optimizer.lr_warmup_steps": 10,
    "optimizer.lr_decay_style": "constant",
    "optimizer.weight_decay": 0.1,
    "reward.function": "math",
    "reward.length_scaling": True,
    "reward.length_full_until": 3500,
    "reward.length_floor_at": 4096,
    "reward.length_floor": 0.7,
    "algorithm.name": "resrl",
    "algorithm.updates_per_step": 4,
    "algorithm.clip_low": 0.2,
    "algorithm.clip_high": 0.2,
    "algorithm.dual_clip": None,
    "algorithm.aggregation": "sequence_mean",
    "resrl.rank": 64,
    "resrl.max_positive_tokens": 4096,
    "resrl.quantiles": (0.2, 0.8),
    "resrl.floor": 0.1,
    "resrl.positive_weight": 0.1,
    "resrl.positives": "advantage",
    "resrl.layer": -2,
    "resrl.weights": "residual",
}
"""arXiv 2605.00380: the maths recipe, for Qwen3-4B on DAPO-Math-17k."""


def test_paper_recipe_has_every_number_of_the_paper():
    recipe = load_recipe(FOLDER / "recipe.yaml")
    found = {}
    for name in PAPER:
        section, key = name.split(".")
        found[name] = getattr(getattr(recipe, section), key)
    assert found == PAPER
    # One epoch, of the distinct questions.
    assert recipe.steps == 17_300 // 256
    assert recipe.model.path.endswith("Qwen3-4B")


def test_paper_suites_are_sampled_as_in_the_paper():
    recipe = load_recipe(FOLDER / "recipe.yaml")
    assert recipe.evaluation.suites == (*("aime24", "aime25", "amc23", "math500"), *MORE)
    for name in recipe.evaluation.suites:
        suite = SUITES[name]
        assert (suite.samples_per_prompt, suite.temperature, suite.top_p) == (16, 0.6, 0.95)
        # Questions are asked as in training.
        assert recipe.data.train_files[0]["prompt_template"] == suite.prompt_template


@pytest.mark.parametrize("kind", ["code", "function_calling", "agents/alfworld", "agents/webshop"])
def test_paper_recipes_share_the_method(kind: str) -> None:
    """What is no setting of a run on mathematics is the same."""
    maths, other = (load_recipe(ROOT / f"examples/paper/{k}/recipe.yaml") for k in ("math", kind))
    assert other.resrl == maths.resrl
    of_task = {"updates_per_step": 1, "micro_batch_size": 1}
    assert replace(other.algorithm, **of_task) == replace(maths.algorithm, **of_task)
    assert other.optimizer == maths.optimizer
    assert (other.rollout.temperature, other.rollout.top_p) == (1.0, 1.0)


def test_files_call_no_default_the_one_of_the_paper_wrongly():
    """A default beside the paper's number says so in its docstring."""
    schema = "".join(
        (ROOT / f"megatron_resrl/config/{name}.py").read_text()
        for name in ("schema", "schema_questions", "schema_rollout")
    )
    for setting, said in (
        ("updates_per_step: Annotated[int, at_least(1)] = 1", "paper: 4"),
        ("length_scaling: bool = False", "paper: true"),
        ("samples_per_prompt: Annotated[int, at_least(1)] = 4", "paper: 16"),
        ('positives: Literal["score", "advantage"] = "score"', "(the paper)"),
    ):
        docstring = schema.split(setting, 1)[1].split('"""')[1]
        assert said in docstring, setting
