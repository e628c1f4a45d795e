"""What is allowed and probably not meant: printed by `check`, logged when a run starts."""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from megatron_resrl.checks.facts import Facts
from megatron_resrl.config.problems import Problem

_LARGE_LR = 1e-2
"""Learning rates above it destroy language models within a few updates of Adam."""
_MANY_STEPS = 10
"""A run of more steps is worth a checkpoint on the way."""


def _note(setting: str, value: object, problem: str, fix: str) -> Problem:
    return Problem(setting, value, problem, fix, "note")


def _note_warm_up(facts: Facts) -> Iterator[Problem]:
    recipe = facts.recipe
    updates = recipe.steps * recipe.algorithm.updates_per_step
    warm_up = recipe.optimizer.lr_warmup_steps
    if warm_up > updates:
        problem = (
            f"the warm-up is longer than the run's {updates} optimizer steps, so that "
            f"the learning rate ends at {updates / warm_up:.0%} of optimizer.lr"
        )
        fix = f"use at most {updates} for the whole of it, or more steps"
        yield _note("optimizer.lr_warmup_steps", warm_up, problem, fix)


def _note_learning_rate(facts: Facts) -> Iterator[Problem]:
    lr = facts.recipe.optimizer.lr
    if lr > _LARGE_LR:
        problem = f"above {_LARGE_LR}, where updates of Adam destroy a language model"
        yield _note("optimizer.lr", lr, problem, "the paper uses 1e-6")


def _note_evaluation(facts: Facts) -> Iterator[Problem]:
    evaluation = facts.recipe.evaluation
    if evaluation.every and not evaluation.files:
        problem = "there are no evaluation.files, so that nothing is evaluated"
        yield _note("evaluation.every", evaluation.every, problem, "give files or set it to 0")
    elif evaluation.every > facts.recipe.steps:
        problem = f"the run has {facts.recipe.steps} steps: it is evaluated before and after them"
        yield _note("evaluation.every", evaluation.every, problem, "use a smaller number")


def _note_saving(facts: Facts) -> Iterator[Problem]:
    every, steps = facts.recipe.checkpoint.save_every, facts.recipe.steps
    if (every == 0 or every >= steps) and steps > _MANY_STEPS:
        problem = f"a run that is killed before step {steps} has saved nothing"
        yield _note("checkpoint.save_every", every, problem, "save on the way, e.g. every 10 steps")


def _note_temperature(facts: Facts) -> Iterator[Problem]:
    for section in ("rollout", "evaluation"):
        value = getattr(facts.recipe, section).temperature
        if value > 2:
            problem = "responses at this temperature are close to noise"
            yield _note(f"{section}.temperature", value, problem, "1.0 samples the policy itself")


def _note_greedy_samples(facts: Facts) -> Iterator[Problem]:
    evaluation = facts.recipe.evaluation
    greedy = [
        each
        for each in facts.evaluation_sets[0]
        if each.temperature == 0 and each.samples_per_prompt > 1
    ]
    if greedy:
        problem = "the temperature is 0: all of them are the same response"
        if evaluation.temperature == 0:
            problem = f"evaluation.{problem.removeprefix('the ')}"
        else:
            problem += f" (set {greedy[0].name})"
        samples = greedy[0].samples_per_prompt
        yield _note("evaluation.samples_per_prompt", samples, problem, "use 1")


def _note_attention_in_fp32(facts: Facts) -> Iterator[Problem]:
    engine = facts.elsewhere or find_spec("transformer_engine") is not None
    if facts.recipe.precision.params_dtype == "fp32" and facts.has_cuda and engine:
        problem = (
            "Transformer Engine's fused attention takes 16-bit numbers only; the kernel it falls "
            "back to holds scores of tokens x tokens for each head"
        )
        yield _note("precision.params_dtype", "fp32", problem, "bf16 is for training on GPUs")


def _note_wandb(facts: Facts) -> Iterator[Problem]:
    project = facts.recipe.logging.wandb_project
    mode = os.environ.get("WANDB_MODE", "online")
    if project is None or mode != "online" or facts.elsewhere or _wandb_key_there():
        return
    problem = "nobody is logged in on this machine; the run would be kept on disk for `wandb sync`"
    fix = "run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline if that is meant"
    yield _note("logging.wandb_project", project, problem, fix)


def _wandb_key_there() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2]
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(file)).authenticators(host.strip("/")) is not None
    except (OSError, netrc.NetrcParseError):
        return False


NOTES = (
    _note_warm_up,
    _note_learning_rate,
    _note_evaluation,
    _note_saving,
    _note_temperature,
    _note_greedy_samples,
    _note_wandb,
    _note_attention_in_fp32,
)
"""For training only."""
