"""The commands `train`, `sft`, `pretrain` and `eval`. They import torch when they run."""

from __future__ import annotations

from functools import partial

from megatron_resrl.checks.named_paths import named_paths
from megatron_resrl.cli.command import CliCommand, print_settings
from megatron_resrl.cli.start import activity, start
from megatron_resrl.config.schema import Recipe
from megatron_resrl.config.schema_pretrain import PretrainRecipe
from megatron_resrl.config.schema_sft import SftRecipe


def _train(path: str | None, overrides: list[str]) -> int:
    recipe = start(path, overrides, "train")
    from megatron_resrl.training.rl_loop import train as run_training

    with activity(), named_paths(recipe):
        run_training(recipe)
    return 0


def _evaluate(path: str | None, overrides: list[str]) -> int:
    recipe = start(path, overrides, "eval")
    from megatron_resrl.evaluation.run import evaluate as run_evaluation

    with activity(), named_paths(recipe):
        run_evaluation(recipe)
    return 0


def _sft(path: str | None, overrides: list[str]) -> int:
    recipe = start(path, overrides, "sft", SftRecipe)
    from megatron_resrl.training.sft import train as run_fine_tuning

    with activity(), named_paths(recipe):
        run_fine_tuning(recipe)
    return 0


def _pretrain(path: str | None, overrides: list[str]) -> int:
    recipe = start(path, overrides, "pretrain", PretrainRecipe)
    from megatron_resrl.training.pretrain import pretrain as run_pretraining

    with activity(), named_paths(recipe):
        run_pretraining(recipe)
    return 0


TRAIN = CliCommand(
    _train,
    "roll out, grade and update for the recipe's number of steps",
    partial(print_settings, "train", "Trains the policy of a recipe.", Recipe),
)
SFT = CliCommand(
    _sft,
    "fine-tune on conversations: learn what the assistant says",
    partial(print_settings, "sft", "Fine-tunes the model of a recipe on conversations.", SftRecipe),
)
EVAL = CliCommand(
    _evaluate,
    "avg@k and pass@k of the model on the evaluation files",
    partial(
        print_settings, "eval", "Evaluates the model of a recipe on its evaluation files.", Recipe
    ),
)
PRETRAIN = CliCommand(
    _pretrain,
    "train a model on token files, from fresh or given weights",
    partial(
        print_settings, "pretrain", "Trains the model of a recipe on token files.", PretrainRecipe
    ),
)
