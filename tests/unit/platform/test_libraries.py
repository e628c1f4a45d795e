"""Switches of CUDA's libraries: set where they are needed, unless the user has set them."""

from __future__ import annotations

import os

import pytest
import torch
from servers_of import specs_of

from megatron_resrl.config.load import load_recipe
from megatron_resrl.platform.libraries import library_variables, prepare_libraries
from megatron_resrl.platform.precision import transformer_precision

DETERMINISTIC = {
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
    "NCCL_ALGO": "Ring",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def chosen(
    *overrides: str, environment: dict[str, str] | None = None, cuda: bool = True
) -> dict[str, str]:
    recipe = load_recipe(None, overrides)
    return library_variables(recipe.precision, recipe.rollout, environment or {}, cuda=cuda)


def test_prepare_libraries_sets_cuda_defaults_unless_given() -> None:
    assert chosen() == {
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "TORCH_NCCL_AVOID_RECORD_STREAMS": "1",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }
    given = {"CUDA_DEVICE_MAX_CONNECTIONS": "8", "PYTORCH_CUDA_ALLOC_CONF": "backend:native"}
    assert not set(given) & set(chosen(environment=given))
    assert "PYTORCH_ALLOC_CONF" not in chosen(environment=given)
    assert chosen(cuda=False) == {}


def test_prepare_libraries_keeps_shared_memory_unexpandable() -> None:
    vllm = ("--rollout.engine=vllm", "--rollout.placement")
    assert "PYTORCH_ALLOC_CONF" not in chosen(*vllm, "colocated")
    assert "PYTORCH_ALLOC_CONF" in chosen(*vllm, "disaggregated")


def test_prepare_libraries_logs_what_it_sets(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in chosen():
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # Set again at the end of the test, as it was.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    recipe = load_recipe(None, [])
    with caplog.at_level("INFO"):
        prepare_libraries(recipe.precision, recipe.rollout)
        prepare_libraries(recipe.precision, recipe.rollout)
    (line,) = caplog.messages
    assert line.startswith("environment variables set for the libraries: ")
    for name, value in chosen().items():
        assert f"{name}={value}" in line
        assert os.environ[name] == value


def test_servers_do_not_inherit_switches_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in chosen().items():
        monkeypatch.setenv(name, value)
    recipe = load_recipe(None, ["--rollout.engine=vllm"])
    (server,) = specs_of(recipe, cuda=True)
    assert not set(chosen()) & set(server.environment)


@pytest.mark.setting("precision.deterministic")
def test_deterministic_run_replaces_switches_that_change_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in DETERMINISTIC:
        monkeypatch.setenv(name, "of the user")
    on = "--precision.deterministic=true"
    for cuda in (False, True):
        found = chosen(on, environment={"NCCL_ALGO": "Tree"}, cuda=cuda)
        assert found.items() >= DETERMINISTIC.items()
    assert not set(DETERMINISTIC) & set(chosen())
    precision = load_recipe(None, [on]).precision
    assert transformer_precision(precision)["deterministic_mode"] is True
    recipe = load_recipe(None, [on])
    prepare_libraries(recipe.precision, recipe.rollout)
    try:
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ.items() >= DETERMINISTIC.items()
    finally:
        torch.use_deterministic_algorithms(False)
