"""What is allowed and probably not meant: printed by `check`, logged when a run starts."""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from megatron_resrl.checks.facts import Check, RunCheck
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema_questions import FileEntry
from megatron_resrl.evaluation.sets import SetSettings

_LARGE_LR = 1e-2
"""Learning rates above it destroy language models within a few updates of Adam."""
_MANY_STEPS = 10
"""A run of more steps is worth a checkpoint on the way."""


def _note(setting: str, value: object, problem: str, fix: str) -> Problem:
    return Problem(setting, value, problem, fix, "note")


def note_warm_up(warm_up: int, updates: int) -> Iterator[Problem]:
    """Both in optimizer steps, `updates` of the whole run."""
    if warm_up > updates:
        problem = (
            f"the warm-up is longer than the run's {updates} optimizer steps, so that "
            f"the learning rate ends at {updates / warm_up:.0%} of optimizer.lr"
        )
        fix = f"use at most {updates} to reach optimizer.lr, or more steps"
        yield _note("optimizer.lr_warmup_steps", warm_up, problem, fix)


def _note_learning_rate(lr: float) -> Iterator[Problem]:
    if lr > _LARGE_LR:
        problem = f"above {_LARGE_LR}, where updates of Adam destroy a language model"
        yield _note("optimizer.lr", lr, problem, "the paper uses 1e-6")


def note_evaluation(every: int, entries: Sequence[FileEntry], steps: int) -> Iterator[Problem]:
    """An interval between evaluations that says nothing."""
    if every and not entries:
        problem = "there are no evaluation.files, so that nothing is evaluated"
        yield _note("evaluation.every", every, problem, "give files or set it to 0")
    elif every > steps:
        problem = f"of the run's {steps} steps only start and end are evaluated"
        yield _note("evaluation.every", every, problem, "use a smaller number")


def _note_saving(every: int, steps: int) -> Iterator[Problem]:
    if (every == 0 or every >= steps) and steps > _MANY_STEPS:
        problem = f"a run that is killed before step {steps} has saved nothing"
        yield _note("checkpoint.save_every", every, problem, "save on the way, e.g. every 10 steps")


def _note_temperature(setting: str, value: float) -> Iterator[Problem]:
    if value > 2:
        problem = "responses at this temperature are close to noise"
        yield _note(setting, value, problem, "1.0 samples the policy itself")


def _note_greedy_samples(temperature: float, sets: Sequence[SetSettings]) -> Iterator[Problem]:
    """`temperature`: of sets without one of their own."""
    greedy = [each for each in sets if each.temperature == 0 and each.samples_per_prompt > 1]
    if greedy:
        where = "evaluation.temperature"
        if temperature != 0:
            where = f"the temperature of the set {greedy[0].name}"
        problem = f"{where} is 0, so that all samples of a question are the same response"
        samples = greedy[0].samples_per_prompt
        yield _note("evaluation.samples_per_prompt", samples, problem, "use 1")


def _note_attention_in_fp32(
    params_dtype: str, *, has_cuda: bool, elsewhere: bool
) -> Iterator[Problem]:
    engine = elsewhere or find_spec("transformer_engine") is not None
    if params_dtype == "fp32" and has_cuda and engine:
        problem = (
            "Transformer Engine's fused attention takes 16-bit numbers only; in fp32 a slower "
            "kernel keeps tokens x tokens scores of each head in memory"
        )
        yield _note("precision.params_dtype", "fp32", problem, "bf16 is for training on GPUs")


def _note_wandb(project: str | None, elsewhere: bool) -> Iterator[Problem]:
    mode = os.environ.get("WANDB_MODE", "online")
    if project is None or mode != "online" or elsewhere or _wandb_key_there():
        return
    problem = "wandb is not logged in on this machine; the run stays on disk for `wandb sync`"
    fix = "run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline to keep it there"
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


RUN_NOTES: tuple[RunCheck, ...] = (
    lambda facts: _note_learning_rate(facts.recipe.optimizer.lr),
    lambda facts: _note_saving(facts.recipe.checkpoint.save_every, facts.recipe.steps),
    lambda facts: _note_wandb(facts.recipe.logging.wandb_project, facts.elsewhere),
    lambda facts: _note_attention_in_fp32(
        facts.recipe.precision.params_dtype, has_cuda=facts.has_cuda, elsewhere=facts.elsewhere
    ),
)
"""For every stage of training."""
NOTES: tuple[Check, ...] = (
    lambda facts: note_warm_up(
        facts.recipe.optimizer.lr_warmup_steps,
        facts.recipe.steps * facts.recipe.algorithm.updates_per_step,
    ),
    lambda facts: note_evaluation(
        facts.recipe.evaluation.every, facts.recipe.evaluation.entries, facts.recipe.steps
    ),
    lambda facts: _note_temperature("rollout.temperature", facts.recipe.rollout.temperature),
    lambda facts: _note_temperature("evaluation.temperature", facts.recipe.evaluation.temperature),
    lambda facts: _note_greedy_samples(
        facts.recipe.evaluation.temperature, facts.evaluation_sets[0]
    ),
)
"""For reinforcement learning."""
