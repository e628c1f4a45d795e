"""The commands by name, in the order in which `--help` shows them."""

from __future__ import annotations

from megatron_resrl.cli import (
    algorithms,
    check,
    compare,
    doctor,
    launch,
    plan,
    serve,
    stages,
    status,
)
from megatron_resrl.cli.command import CliCommand

COMMANDS: dict[str, CliCommand] = {
    "train": stages.TRAIN,
    "sft": stages.SFT,
    "eval": stages.EVAL,
    "pretrain": stages.PRETRAIN,
    "compare": compare.COMPARE,
    "check": check.CHECK,
    "algorithms": algorithms.ALGORITHMS,
    "plan": plan.PLAN,
    "launch": launch.LAUNCH,
    "serve": serve.SERVE,
    "doctor": doctor.DOCTOR,
    "status": status.STATUS,
}
