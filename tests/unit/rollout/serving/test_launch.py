"""How servers are started: flags, and what of the trainer's environment they see."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace

import pytest
from servers_of import specs_of

from megatron_resrl.config.load import recipe_yaml
from megatron_resrl.config.schema import (
    DataConfig,
    ModelConfig,
    PrecisionConfig,
    Recipe,
    RolloutConfig,
    VllmConfig,
)
from megatron_resrl.errors import InputError
from megatron_resrl.rollout.serving.launch import (
    ServerPlace,
    api_key_of,
    as_flags,
    visible_gpus,
)

RECIPE = Recipe(
    output_dir="out",
    model=ModelConfig(path="/models/m"),
    precision=PrecisionConfig(params_dtype="bf16"),
    data=DataConfig(max_prompt_length=100),
    rollout=RolloutConfig(engine="vllm", max_response_length=28),
    vllm=VllmConfig(servers=2),
)


def specs(vllm: VllmConfig = RECIPE.vllm, *, cuda: bool = False, flags=((), {}), **rollout):
    recipe = replace(RECIPE, vllm=vllm, rollout=replace(RECIPE.rollout, **rollout))
    return specs_of(recipe, cuda=cuda, weight_flags=flags)


def flag(spec, name: str) -> str:
    return spec.arguments[len(spec.arguments) - 1 - spec.arguments[::-1].index(name) + 1]


def test_as_flags_takes_every_form_of_value():
    arguments = {"a_b": 1, "--c": True, "d": False, "e": None, "f": [1, 2], "g": {"x": 1}}
    assert as_flags(arguments) == [
        "--a-b",
        "1",
        "--c",
        "--no-d",
        "--f",
        "1",
        "2",
        "--g",
        '{"x": 1}',
    ]


def test_server_specs_serve_the_model_of_the_recipe():
    spec, other = specs()
    assert spec.arguments[:3] == (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
    assert flag(spec, "--max-model-len") == "128"
    assert flag(spec, "--dtype") == "bfloat16"
    assert flag(spec, "--load-format") == "dummy"
    assert "--enforce-eager" in spec.arguments
    host = socket.gethostname().partition(".")[0]
    assert (spec.log.name, other.log.name) == (f"{host}_server_0.log", f"{host}_server_1.log")
    assert (spec.name, spec.host) == (f"server 0 on {host}", "127.0.0.1")


def test_server_specs_of_other_nodes_go_on_counting():
    place = ServerPlace("10.0.0.2", 3, "node03")
    first, second = specs_of(RECIPE, place=place)
    assert (first.name, second.name) == ("server 6 on node03", "server 7 on node03")
    assert second.log.name == "node03_server_7.log"
    assert first.host == "10.0.0.2"


@pytest.mark.setting("vllm.arguments")
def test_server_specs_put_the_users_arguments_last():
    vllm = VllmConfig(python="/opt/python", arguments={"dtype": "half"})
    (spec,) = specs(vllm, flags=(("--weights", "w"), {}))
    assert spec.arguments[0] == "/opt/python"
    assert spec.arguments[-4:] == ("--weights", "w", "--dtype", "half")


def test_server_specs_sleep_only_on_shared_gpus():
    (shared,) = specs(VllmConfig(), cuda=True)
    (own,) = specs(VllmConfig(), cuda=True, placement="disaggregated")
    (cpu,) = specs(VllmConfig())
    assert ["--enable-sleep-mode" in spec.arguments for spec in (shared, own, cpu)] == [1, 0, 0]


@pytest.mark.setting("vllm.environment")
def test_server_specs_do_not_inherit_the_launchers_variables(monkeypatch):
    leaking = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH")
    for name in leaking:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "1")
    vllm = VllmConfig(environment={"MINE": "2", "PYTHONPATH": "user"})
    (spec,) = specs(vllm, flags=((), {"PYTHONPATH": "weights:user"}))
    assert not set(leaking[:-1]) & set(spec.environment)
    assert spec.environment["PYTHONPATH"] == "weights:user"
    assert (spec.environment["KEPT"], spec.environment["MINE"]) == ("1", "2")
    assert spec.environment["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.mark.setting("vllm.servers", "vllm.devices", "vllm.tensor_parallel_size")
def test_server_specs_give_every_server_its_own_gpus():
    vllm = VllmConfig(servers=2, devices=("4,5", "6,7"), tensor_parallel_size=2)
    first, second = specs(vllm, cuda=True)
    assert first.environment["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert second.environment["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert flag(first, "--tensor-parallel-size") == "2"


@pytest.mark.setting("vllm.max_running_requests")
def test_server_specs_take_as_many_requests_as_are_sent():
    spec, _ = specs(VllmConfig(servers=2, max_running_requests=7))
    assert flag(spec, "--max-num-seqs") == "7"


def test_server_specs_have_distinct_names():
    assert len({spec.model for spec in (*specs(), *specs())}) == 4


@pytest.mark.setting("vllm.api_key")
def test_server_specs_pass_the_key_by_environment_alone(monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    recipe = replace(RECIPE, vllm=VllmConfig(api_key="s3cret"))
    key = api_key_of(recipe.vllm)
    (spec,) = specs_of(recipe, api_key=key)
    assert spec.environment["VLLM_API_KEY"] == "s3cret"
    assert "s3cret" not in " ".join(spec.arguments)
    assert "s3cret" not in recipe_yaml(recipe)


def test_api_key_is_random_for_started_servers_alone(monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    first, second = api_key_of(RECIPE.vllm), api_key_of(RECIPE.vllm)
    assert len(first) >= 32
    assert first != second
    others = replace(RECIPE, vllm=VllmConfig(urls=("http://host:8000",)))
    assert api_key_of(others.vllm) is None
    monkeypatch.setenv("VLLM_API_KEY", "given")
    assert api_key_of(others.vllm) == api_key_of(RECIPE.vllm) == "given"


def test_server_specs_use_no_gpu_twice():
    vllm = VllmConfig(servers=2, tensor_parallel_size=2)
    recipe = replace(RECIPE, vllm=vllm)
    given = specs_of(recipe, cuda=True, gpus=["4", "5", "6", "7"])
    assert [spec.environment["CUDA_VISIBLE_DEVICES"] for spec in given] == ["4,5", "6,7"]
    with pytest.raises(InputError, match=r"are 4 GPUs, and host \S+ has 3"):
        specs_of(recipe, cuda=True, gpus=["4", "5", "6"])


def test_visible_gpus_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    assert visible_gpus() == ["2", "3"]
