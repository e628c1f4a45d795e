"""What every command checks of its recipe, and the checks that hold for one setting of all."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from importlib.util import find_spec

from megatron_resrl.checks.experts import EXPERT_CHECKS
from megatron_resrl.checks.facts import RunCheck
from megatron_resrl.checks.files import check_tokenizer
from megatron_resrl.checks.model import MODEL_CHECKS
from megatron_resrl.checks.notes import RUN_NOTES
from megatron_resrl.checks.output import OUTPUT_CHECKS, ROOM_CHECKS
from megatron_resrl.checks.parallel import PARALLEL_CHECKS
from megatron_resrl.checks.passthrough import check_passthrough
from megatron_resrl.checks.precision import PRECISION_CHECKS
from megatron_resrl.checks.values import check_ranges
from megatron_resrl.config.durations import seconds_of
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import OptimizerConfig, RunSettings
from megatron_resrl.observe.prometheus_endpoint import ADDRESS


def _check_wandb(project: str | None) -> Iterator[Problem]:
    if project is not None and find_spec("wandb") is None:
        fix = "install the `wandb` extra (pip install megatron-resrl[wandb]) or set it to null"
        yield Problem("logging.wandb_project", project, "wandb is not installed", fix, "machine")


def _check_prometheus(port: int | None, *, elsewhere: bool) -> Iterator[Problem]:
    """The extra is installed, and the port is free on rank 0's host."""
    if port is None:
        return
    setting = "logging.prometheus_port"
    if find_spec("prometheus_client") is None:
        fix = "install the `prometheus` extra (pip install megatron-resrl[prometheus]) or set null"
        yield Problem(setting, port, "prometheus-client is not installed", fix, "machine")
    if elsewhere or os.environ.get("RANK", "0") != "0" or not 0 < port < 65536:
        return
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
        except OSError as error:
            fix = "choose another port above 1023, or set it to null"
            yield Problem(setting, port, f"the port cannot be used ({error})", fix, "machine")


def _check_schedule(optimizer: OptimizerConfig) -> Iterator[Problem]:
    name, steps = "optimizer.lr_wsd_decay_steps", optimizer.lr_wsd_decay_steps
    if optimizer.lr_decay_style == "WSD" and steps is None:
        problem = "optimizer.lr_decay_style WSD needs it"
        yield Problem(name, steps, problem, "give the length of the decay in optimizer steps")
    elif optimizer.lr_decay_style != "WSD" and steps is not None:
        problem = f"optimizer.lr_decay_style is {optimizer.lr_decay_style}"
        yield Problem(name, steps, problem, "leave it out, or set optimizer.lr_decay_style to WSD")


def _check_time_budget(budget: str | float | None) -> Iterator[Problem]:
    if budget is None:
        return
    try:
        seconds_of(budget)
    except ValueError:
        fix = "give seconds above 0, h:mm:ss or d-hh:mm:ss, e.g. 3:45:00"
        yield Problem("time_budget", budget, "it is no length of time", fix)


def _check_rollback(recipe: RunSettings) -> Iterator[Problem]:
    """A rollback needs a checkpoint."""
    health = recipe.health
    rules = ("loss_spike", "grad_norm_spike", "reward_collapse", "entropy_collapse")
    asked = {f"health.{rule}": getattr(health, rule) for rule in rules}
    asked["optimizer.non_finite"] = recipe.optimizer.non_finite
    for setting, reaction in asked.items():
        if reaction == "rollback" and recipe.checkpoint.save_every == 0:
            problem = "checkpoint.save_every is 0, so that there is no checkpoint to go back to"
            fix = "set checkpoint.save_every, e.g. to 10"
            yield Problem(setting, reaction, problem, fix)


COMMAND_CHECKS: tuple[RunCheck, ...] = (
    check_ranges,
    *MODEL_CHECKS,
    *PARALLEL_CHECKS,
    *EXPERT_CHECKS,
    *PRECISION_CHECKS,
    *OUTPUT_CHECKS,
    check_tokenizer,
    lambda facts: _check_wandb(facts.recipe.logging.wandb_project),
    check_passthrough,
)
"""For every command, evaluation included."""

STAGE_CHECKS: tuple[RunCheck, ...] = (
    lambda facts: _check_schedule(facts.recipe.optimizer),
    lambda facts: _check_prometheus(
        facts.recipe.logging.prometheus_port, elsewhere=facts.elsewhere
    ),
    lambda facts: _check_time_budget(facts.recipe.time_budget),
    lambda facts: _check_rollback(facts.recipe),
    *ROOM_CHECKS,
    *RUN_NOTES,
)
"""For every stage of training."""
