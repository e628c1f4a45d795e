"""A tiny run: a random model, questions, and rewards that about half of its answers earn."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_recipe import write_model, write_settings

REWARD = '''\
"""Even first number: correct."""


def even(response, ground_truth, **context):
    words = response.split()
    return float(bool(words) and words[0].isdigit() and int(words[0]) % 2 == 0)


def always(response, ground_truth, **context):
    return 1.0


def broken(response, ground_truth, **context):
    raise KeyError("no such unit")
'''


def write_task(directory: Path, *, experts: bool = False, **overrides: object) -> Path:
    """Writes model, questions, reward functions and a recipe of four small steps.

    Args:
        directory: Gets everything; runs go to `directory / "run"`.
        experts: The model is a mixture of experts.
        overrides: Dotted settings with "__" for ".", e.g. `rollout__group_size=8`.

    Returns:
        The recipe.
    """
    model = write_model(directory / "model", experts=experts)
    (directory / "reward.py").write_text(REWARD)
    questions = [{"prompt": f"{n} {n + 1}", "answer": str(n)} for n in range(3, 19)]
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    (directory / "train.jsonl").write_text(lines)
    (directory / "heldout.jsonl").write_text(lines)
    recipe: dict = {
        "output_dir": str(directory / "run"),
        "steps": 4,
        "seed": 3,
        "model": {"path": str(model)},
        "precision": {"params_dtype": "fp32"},
        "data": {"train_files": [str(directory / "train.jsonl")], "max_prompt_length": 16},
        "rollout": {"prompts_per_step": 4, "group_size": 6, "max_response_length": 8},
        "reward": {"function": f"{directory / 'reward.py'}:even", "workers": 1},
        "algorithm": {"micro_batch_size": 4},
        "resrl": {"rank": 4},
        "optimizer": {"lr": 1e-2, "lr_warmup_steps": 0},
        "evaluation": {"files": [str(directory / "heldout.jsonl")], "samples_per_prompt": 2},
        "checkpoint": {"save_every": 2},
        "logging": {"tensorboard": False, "progress_bar": False},
    }
    return write_settings(directory / "recipe.yaml", recipe, overrides)


def read_metrics(run: Path) -> list[dict]:
    """Lines of a run's metrics.jsonl without what differs from run to run: times and memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    of_machine = ("time", "straggler/", "memory/")
    return [
        {name: value for name, value in line.items() if not name.startswith(of_machine)}
        for line in lines
    ]
