"""The choice of vLLM's back end and the flags that a server needs for it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from megatron_resrl.config.schema import Recipe, VllmConfig
from megatron_resrl.errors import InputError
from megatron_resrl.rollout.weight_sync.backends import chosen_backend, server_arguments


def test_without_gpus_weights_go_through_files():
    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    assert chosen_backend(Recipe()) == "file"


@pytest.mark.parametrize("backend", ["nccl", "ipc"])
@pytest.mark.setting("vllm.weight_transfer")
def test_a_gpu_back_end_without_gpus_is_refused_by_its_setting(backend):
    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    with pytest.raises(InputError, match=f"vllm.weight_transfer is '{backend}'.*CUDA"):
        chosen_backend(Recipe(vllm=VllmConfig(weight_transfer=backend)))


def test_a_server_gets_the_back_end_and_the_folder_of_its_module():
    recipe = Recipe(
        vllm=VllmConfig(weight_transfer="file", environment={"PYTHONPATH": "/their/own"})
    )
    arguments, environment = server_arguments(recipe)
    config = json.loads(arguments[arguments.index("--weight-transfer-config") + 1])
    assert config == {"backend": "megatron_resrl_file"}
    module, _, _ = arguments[arguments.index("--worker-extension-cls") + 1].partition(".")
    folder, *others = environment["PYTHONPATH"].split(os.pathsep)
    assert (Path(folder) / f"{module}.py").is_file()
    assert others == ["/their/own"]
