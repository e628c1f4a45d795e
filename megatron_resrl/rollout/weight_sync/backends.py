"""Which back end of vLLM takes new weights, and how a server must be started for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from megatron_resrl.config.schema import VllmConfig
from megatron_resrl.errors import InputError
from megatron_resrl.rollout.weight_sync.choice import Backend, transfer_backend

WORKER_FOLDER = Path(__file__).with_name("worker")
"""Folder that is added to the PYTHONPATH of a server."""
_NAMES = {"nccl": "nccl", "ipc": "ipc", "file": "megatron_resrl_file"}
"""What vLLM calls the back ends."""


def chosen_backend(vllm: VllmConfig, placement: str) -> Backend:
    """The back end of `vllm.weight_transfer` on this machine, for a `rollout.placement`.

    Raises:
        InputError: `nccl` or `ipc` without CUDA.
    """
    setting, cuda = vllm.weight_transfer, torch.cuda.is_available()
    if setting in ("nccl", "ipc") and not cuda:
        raise InputError(
            f"vllm.weight_transfer is {setting!r}, which needs a CUDA device; "
            "vllm.weight_transfer: file needs none"
        )
    return transfer_backend(vllm, placement, has_cuda=cuda)[0]


def server_arguments(vllm: VllmConfig, placement: str) -> tuple[list[str], dict[str, str]]:
    """How a server must be started to take weights and to be verified.

    Returns:
        Arguments of `vllm serve`, and environment variables. PYTHONPATH continues the one of
        `vllm.environment`, which it replaces.
    """
    backend = chosen_backend(vllm, placement)
    given = vllm.environment.get("PYTHONPATH")
    environment = {
        # Without it the server has no routes for weights.
        "VLLM_SERVER_DEV_MODE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(WORKER_FOLDER), given))),
    }
    if backend == "ipc":
        # Handles of CUDA memory travel pickled.
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    arguments = ["--weight-transfer-config", json.dumps({"backend": _NAMES[backend]})]
    arguments += ["--worker-extension-cls", "megatron_resrl_worker.WeightExtension"]
    # vLLM's own API key guards only some of its routes.
    arguments += ["--middleware", "megatron_resrl_guard.RequireKey"]
    # The verification needs the route that takes and returns token ids.
    arguments += ["--enable-scale-out"]
    return arguments, environment
