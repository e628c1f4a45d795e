"""Who a rank is, as torchrun, srun and mpirun say it."""

from __future__ import annotations

import socket
import time

import pytest

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.errors import InputError
from megatron_resrl.platform import launch
from megatron_resrl.platform.distributed import initialize
from megatron_resrl.platform.launch import (
    device_of,
    expand_hosts,
    rank_variables,
    require_meeting_place,
)

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29501"}
JOB = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[08-11,3],m1", "SLURM_NNODES": "6"}
TASK = {**JOB, "SLURM_NTASKS": "12", "SLURM_PROCID": "7", "SLURM_LOCALID": "1", "SLURM_STEPID": "0"}


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1", ["node1"]),
        ("node[01-04,7]", ["node01", "node02", "node03", "node04", "node7"]),
        ("a1,b[2-3],c", ["a1", "b2", "b3", "c"]),
        ("r[1-2]n[09-10].lan", ["r1n09.lan", "r1n10.lan", "r2n09.lan", "r2n10.lan"]),
        ("gpu-[099-101]", ["gpu-099", "gpu-100", "gpu-101"]),
    ],
)
def test_host_list_is_expanded(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize("text", ["", "n[1-2", "n[a-c]"])
def test_host_list_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        expand_hosts(text)


def test_rank_variables_make_tasks_of_srun_ranks() -> None:
    assert rank_variables(TASK) == {
        "RANK": "7",
        "WORLD_SIZE": "12",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "n08",
        "MASTER_PORT": "12077",
    }
    other = rank_variables({**TASK, "SLURM_STEPID": "3", "SLURM_STEP_NODELIST": "n[10-11]"})
    assert (other["MASTER_ADDR"], other["MASTER_PORT"]) == ("n10", "12368")
    given = rank_variables({**TASK, "MASTER_ADDR": "head", "MASTER_PORT": "5"})
    assert not {"MASTER_ADDR", "MASTER_PORT"} & set(given)


def test_rank_variables_of_srun_on_one_host_meet_there() -> None:
    task = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "77"}
    found = rank_variables({**task, "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0"})
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("0", "2", "127.0.0.1")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1"},
        # A batch script, and the shell of salloc: the job has 12 tasks, this process is none.
        {**JOB, "SLURM_NTASKS": "12", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {**JOB, "SLURM_NTASKS": "12"},
        # A step of one task.
        {**TASK, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {**TASK, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
        # torchrun, started by srun on each host.
        {**TASK, **TORCHRUN},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_rank_variables_need_nothing_alone_or_under_torchrun(
    environment: dict[str, str],
) -> None:
    assert rank_variables(environment) == {}


def test_rank_variables_take_mpirun_also_within_slurm() -> None:
    rank = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}
    rank |= {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    found = rank_variables({**JOB, "SLURM_PROCID": "1", "SLURM_NTASKS": "2", **rank})
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("3", "4", "1")
    assert (found["LOCAL_WORLD_SIZE"], found["MASTER_ADDR"]) == ("2", "n08")
    here = rank_variables({**rank, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"})
    assert (here["MASTER_ADDR"], here["MASTER_PORT"]) == ("127.0.0.1", "29500")
    with pytest.raises(InputError, match="MASTER_ADDR is not set, and mpirun started 4 ranks"):
        rank_variables(rank)
    mpich = rank_variables({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", **JOB})
    assert (mpich["RANK"], mpich["LOCAL_RANK"], mpich["MASTER_ADDR"]) == ("1", "1", "n08")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0"}, "RANK = '0': WORLD_SIZE is not set beside it"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE = '2': RANK is not set beside it"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "RANK = 'first': not a number"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE = 'two': not a number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK = '-1': not a number"),
        ({**TORCHRUN, "LOCAL_RANK": "x"}, "LOCAL_RANK = 'x': not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK = 2: WORLD_SIZE is 2, so that ranks are 0 to 1"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE = 0: a job has at least 1 rank"),
        ({**TASK, "SLURM_PROCID": "12"}, "RANK = 12: WORLD_SIZE is 12"),
        ({**TASK, "SLURM_JOB_NODELIST": "n["}, "SLURM_JOB_NODELIST = 'n['"),
    ],
)
def test_rank_variables_that_are_wrong_are_named(environment: dict[str, str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        rank_variables(environment)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set, and RANK is"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is not set, and RANK is"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT = '99999': not a port"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT = 'http': not a port"),
        ({"MASTER_ADDR": "nobody.invalid"}, "MASTER_ADDR = 'nobody.invalid': there is no such"),
    ],
)
def test_meeting_place_that_does_not_exist_is_named(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], words: str
) -> None:
    monkeypatch.setattr(launch, "_RESOLVE_S", 0.0)
    require_meeting_place(TORCHRUN)
    require_meeting_place({})
    with pytest.raises(InputError) as caught:
        require_meeting_place(TORCHRUN | changes)
    assert words in str(caught.value)


def test_meeting_place_asks_a_busy_name_server_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def busy_once(host: str, *args: object, **options: object) -> list[object]:
        asked.append(host)
        if len(asked) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", busy_once)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    require_meeting_place(TORCHRUN)
    assert asked == ["127.0.0.1"] * 2


def test_meeting_place_names_a_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for name, value in (TORCHRUN | {"RANK": "0", "MASTER_PORT": port}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=f"MASTER_PORT = {port}: another process"):
            initialize(ParallelConfig(timeout_minutes=1), seed=0)


@pytest.mark.parametrize(
    ("environment", "visible", "gpu"),
    [
        ({}, 1, 0),
        ({"LOCAL_RANK": "3"}, 4, 3),
        # srun with --gpus-per-task=1 shows each rank one GPU, which it calls 0.
        ({"LOCAL_RANK": "3"}, 1, 0),
        ({"RANK": "5"}, 4, 1),
        ({"LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}, 1, 0),
    ],
)
def test_device_of_gives_each_rank_of_a_host_a_gpu(
    environment: dict[str, str], visible: int, gpu: int
) -> None:
    assert device_of(environment, visible) == gpu


@pytest.mark.parametrize(
    ("environment", "visible"),
    [({"LOCAL_RANK": "4"}, 4), ({"LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x"}, 1)],
)
def test_device_of_refuses_more_ranks_than_gpus(environment: dict[str, str], visible: int) -> None:
    with pytest.raises(InputError, match="start as many ranks on a host as it has GPUs"):
        device_of(environment, visible)
