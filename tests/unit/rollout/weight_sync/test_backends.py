"""The choice of vLLM's back end and the flags that a server needs for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from megatron_resrl.config.schema import VllmConfig
from megatron_resrl.errors import InputError
from megatron_resrl.rollout.weight_sync.backends import chosen_backend, server_arguments


def test_chosen_backend_is_file_without_gpus():
    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    assert chosen_backend(VllmConfig(), "colocated") == "file"


@pytest.mark.parametrize("backend", ["nccl", "ipc"])
@pytest.mark.setting("vllm.weight_transfer")
def test_chosen_backend_refuses_gpu_back_ends_without_gpus(backend):
    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    with pytest.raises(InputError, match=f"vllm.weight_transfer is '{backend}'.*CUDA"):
        chosen_backend(VllmConfig(weight_transfer=backend), "colocated")


def test_server_arguments_name_back_end_and_module_folder():
    vllm = VllmConfig(weight_transfer="file", environment={"PYTHONPATH": "/their/own"})
    arguments, environment = server_arguments(vllm, "colocated")
    config = json.loads(arguments[arguments.index("--weight-transfer-config") + 1])
    assert config == {"backend": "megatron_resrl_file"}
    module, _, _ = arguments[arguments.index("--worker-extension-cls") + 1].partition(".")
    folder, *others = environment["PYTHONPATH"].split(os.pathsep)
    assert (Path(folder) / f"{module}.py").is_file()
    assert others == ["/their/own"]
