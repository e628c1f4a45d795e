"""Settings of vLLM servers that cannot work are refused before anything is started."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from served_engine import vllm_python

from megatron_resrl.checks.facts import Facts
from megatron_resrl.checks.vllm import SERVE_CHECKS, VLLM_CHECKS
from megatron_resrl.config.problems import Problem
from megatron_resrl.config.schema import Recipe, RolloutConfig, VllmConfig

URL = "http://host:8000"


def problems(rollout: dict[str, Any] | None = None, **vllm: Any) -> list[Problem]:
    recipe = Recipe(
        rollout=RolloutConfig(**{"engine": "vllm", **(rollout or {})}), vllm=VllmConfig(**vllm)
    )
    return [problem for check in VLLM_CHECKS for problem in check(Facts(recipe, 1, {}))]


def test_vllm_addresses_pass():
    assert problems(urls=(URL, "https://other:443/")) == []


def test_check_vllm_is_not_needed_by_the_embedded_engine():
    assert problems({"engine": "megatron"}, python="/nowhere") == []


def test_replay_needs_no_vllm():
    assert problems({"replay": "rollouts"}, python="/nowhere") == []


@pytest.mark.parametrize("url", ["host:8000", "ftp://host:8000", "http://", "host"])
def test_check_urls_refuses_what_is_no_address(url):
    (problem,) = problems(urls=(url,))
    assert (problem.setting, problem.value) == ("vllm.urls", url)
    assert "http://host:8000" in problem.fix


def test_check_urls_refuses_paths_and_repeated_addresses():
    (path,) = problems(urls=(URL + "/v1",))
    assert "leave /v1 out" in path.fix
    (twice,) = problems(urls=(URL, URL))
    assert "twice" in twice.problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("servers", 2),
        ("python", "/opt/vllm/bin/python"),
        ("tensor_parallel_size", 2),
        ("devices", ("0",)),
        ("environment", {"A": "1"}),
        ("arguments", {"seed": 1}),
    ],
)
def test_check_urls_excludes_settings_of_started_servers(name, value):
    (problem,) = problems(urls=(URL,), **{name: value})
    assert problem.setting == f"vllm.{name}"
    assert "already running" in problem.problem


def test_check_python_refuses_a_missing_interpreter():
    (problem,) = problems(python="/nowhere/bin/python")
    assert problem.setting == "vllm.python"
    assert "No such file" in problem.problem


def test_check_python_refuses_another_program():
    (problem,) = problems(python="/bin/ls")
    assert "no Python interpreter" in problem.problem


def test_check_python_refuses_an_interpreter_without_vllm(tmp_path):
    python = tmp_path / "python"
    # The same interpreter without its site-packages.
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    (problem,) = problems(python=str(python))
    assert f"{python} has no module vllm" in problem.problem


@pytest.mark.vllm
def test_check_python_passes_an_interpreter_with_vllm():
    assert problems(python=vllm_python()[0]) == []


def of(setting: str, found: list[Problem]) -> list[Problem]:
    return [problem for problem in found if problem.setting == setting]


def test_devices_must_fit_servers_and_tensor_parallelism():
    (count,) = of("vllm.devices", problems(devices=("0",), servers=2))
    assert "1 entries for vllm.servers = 2" in count.problem
    (gpus,) = of("vllm.devices", problems(devices=("0,1",)))
    assert "'0,1' names 2 GPUs" in gpus.problem
    assert not of(
        "vllm.devices", problems(devices=("0,1", "2,3"), servers=2, tensor_parallel_size=2)
    )


def test_running_ahead_needs_vllm_on_devices_of_its_own():
    ahead = {"max_staleness": 1}
    (engine, placement) = problems({**ahead, "engine": "megatron"})
    assert "rollout.engine 'megatron'" in engine.problem
    assert "rollout.placement is 'colocated'" in placement.problem
    assert problems({**ahead, "placement": "disaggregated"}, urls=(URL,)) == []


def test_check_placement_gives_the_embedded_engine_no_devices():
    (problem,) = problems({"engine": "megatron", "placement": "disaggregated"})
    assert problem.setting == "rollout.placement"


def test_servers_on_their_own_gpus_must_be_told_which(monkeypatch):
    monkeypatch.setattr("megatron_resrl.checks.facts.cuda_available", lambda: True)
    (problem,) = of("rollout.placement", problems({"placement": "disaggregated"}))
    assert "vllm.devices" in problem.fix
    apart = {"placement": "disaggregated"}
    assert not of("rollout.placement", problems(apart, devices=("1",)))
    (transfer,) = of("vllm.weight_transfer", problems(apart, urls=(URL,), weight_transfer="ipc"))
    assert "nccl" in transfer.fix


@pytest.mark.parametrize("transfer", ["nccl", "ipc"])
def test_check_transfer_between_gpus_needs_gpus(monkeypatch, transfer):
    monkeypatch.setattr("megatron_resrl.checks.facts.cuda_available", lambda: False)
    (problem,) = problems(urls=(URL,), weight_transfer=transfer)
    assert (problem.setting, problem.value) == ("vllm.weight_transfer", transfer)


@pytest.mark.parametrize(
    ("devices", "local", "visible", "kind"),
    [
        (tuple("01234567"), None, None, "recipe"),
        (tuple("4567"), None, None, "note"),
        (("8", "9"), None, None, None),
        (tuple("4567"), "4", None, None),
        (("3", "4"), "4", None, "recipe"),
        (("0", "1"), "2", "2,3", None),
        (("3", "1"), "2", "2,3", "recipe"),
        (("0, 1", "2,7"), None, None, "recipe"),
    ],
)
def test_servers_apart_from_the_trainer_do_not_take_its_gpus(
    monkeypatch, devices, local, visible, kind
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        monkeypatch.setenv("RANK", "0")
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    recipe = Recipe(
        rollout=RolloutConfig(engine="vllm", placement="disaggregated"),
        vllm=VllmConfig(
            servers=len(devices), devices=devices, tensor_parallel_size=devices[0].count(",") + 1
        ),
    )
    found = [p for check in VLLM_CHECKS for p in check(Facts(recipe, 64, {}))]
    assert [p.kind for p in of("vllm.devices", found)] == ([kind] if kind else [])


@pytest.mark.parametrize(("transfer", "refused"), [("auto", True), ("nccl", True), ("file", False)])
def test_check_transfer_of_changes_needs_files(monkeypatch, transfer, refused):
    monkeypatch.setattr("megatron_resrl.checks.facts.cuda_available", lambda: True)
    found = problems(urls=(URL,), weight_transfer=transfer, weight_transfer_delta="always")
    assert [each.setting for each in found] == ["vllm.weight_transfer_delta"] * refused
    if refused:
        assert "sends all weights" in found[0].problem
        assert "vllm.weight_transfer file" in found[0].fix


def test_check_transfer_needs_its_directory_if_it_may_be_used():
    (problem,) = problems(urls=(URL,), transfer_dir="/nowhere")
    assert (problem.setting, problem.kind) == ("vllm.transfer_dir", "machine")


def test_check_transfer_needs_its_directory():
    (problem,) = problems(urls=(URL,), weight_transfer="file", transfer_dir="/nowhere")
    assert problem.setting == "vllm.transfer_dir"


@pytest.mark.parametrize(
    ("arguments", "value", "said"),
    [
        ({"--api_key": "s3cret"}, "api-key", "everybody on the host"),
        ({"served_model_name": "m"}, "served-model-name", "chooses it"),
        ({"port": 8000}, "port", "chooses it"),
        ({"max-model-len": 6}, "max-model-len 6", "are 6144"),
    ],
)
def test_vllm_args_may_not_undo_what_the_run_needs(arguments, value, said):
    (problem,) = problems(python=sys.executable, arguments=arguments)[:1]
    assert (problem.setting, problem.value) == ("vllm.arguments", value)
    assert said in problem.problem
    assert "s3cret" not in str(problem)


def test_check_arguments_refuses_an_api_key_that_is_logged():
    problem = problems(python=sys.executable, environment={"VLLM_API_KEY": "s3cret"})[0]
    assert problem.setting == "vllm.environment"
    assert "s3cret" not in str(problem)


def test_server_that_would_take_the_trainers_gpu_is_a_note():
    def notes(**vllm):
        recipe = Recipe(rollout=RolloutConfig(engine="vllm"), vllm=VllmConfig(**vllm))
        facts = Facts(recipe, 1, {}, "cuda")
        found = [problem for check in VLLM_CHECKS for problem in check(facts)]
        return [each for each in found if each.kind == "note" and "0.9" in each.problem]

    (note,) = notes(python=sys.executable)
    assert note.setting == "vllm.arguments"
    assert not notes(python=sys.executable, arguments={"gpu_memory_utilization": 0.5})
    assert not notes(urls=(URL,))


@pytest.mark.parametrize("name", ["environment", "arguments"])
def test_vllm_problems_never_show_values_of_variables(name):
    for urls in ((), (URL,)):
        given = {name: {"VLLM_API_KEY": "s3cret", "api-key": "s3cret"}, "urls": urls}
        recipe = Recipe(rollout=RolloutConfig(engine="vllm"), vllm=VllmConfig(**given))
        facts = Facts(recipe, 1, {}, "cuda")
        found = [problem for check in VLLM_CHECKS for problem in check(facts)]
        assert found
        assert "s3cret" not in "".join(map(str, found))


APART = {"placement": "disaggregated"}


def test_check_nodes_needs_the_place_where_they_meet(monkeypatch):
    monkeypatch.delenv("MEGATRON_RESRL_STORE", raising=False)
    (missing,) = problems(APART, nodes=2, python=sys.executable)[:1]
    assert (missing.setting, missing.kind) == ("vllm.nodes", "machine")
    assert "MEGATRON_RESRL_STORE is not set" in str(missing)
    monkeypatch.setenv("MEGATRON_RESRL_STORE", "node01")
    (wrong,) = problems(APART, nodes=2, python=sys.executable)[:1]
    assert "not host:port" in str(wrong)
    monkeypatch.setenv("MEGATRON_RESRL_STORE", "node01:29600")
    assert not of_nodes(APART, nodes=2)


def test_check_nodes_needs_servers_with_nodes_of_their_own(monkeypatch):
    monkeypatch.setenv("MEGATRON_RESRL_STORE", "node01:29600")
    (embedded,) = of_nodes({"engine": "megatron"}, nodes=1)
    assert "uses no servers" in embedded.problem
    (shared,) = of_nodes({"placement": "colocated"}, nodes=1)
    assert "disaggregated" in shared.fix
    (given,) = of_nodes(APART, nodes=1, urls=(URL,))
    assert "already running" in given.problem


@pytest.mark.setting("vllm.nodes")
def test_check_nodes_leaves_the_job_a_node_to_train(monkeypatch):
    monkeypatch.setenv("MEGATRON_RESRL_STORE", "node01:29600")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    assert not of_nodes(APART, nodes=2)
    (none,) = of_nodes(APART, nodes=3)
    assert "the job has 3 nodes" in none.problem


def test_check_serve_needs_nodes():
    recipe = Recipe(rollout=RolloutConfig(engine="vllm"), vllm=VllmConfig(python=sys.executable))
    found = [each for check in SERVE_CHECKS for each in check(Facts(recipe, 1, {}))]
    assert any(
        each.setting == "vllm.nodes" and "nodes that train" in each.problem for each in found
    )


def of_nodes(rollout: dict[str, Any], **vllm: Any) -> list[Problem]:
    return [each for each in problems(rollout, **vllm) if each.setting == "vllm.nodes"]
