"""A host, what its ranks may use of it, and their environment variables."""

from __future__ import annotations

import dataclasses
import resource
import socket
from pathlib import Path

import pytest

from megatron_resrl.doctor.facts.gpus import Gpu, GpuFacts
from megatron_resrl.doctor.facts.host import HostFacts, cpu_list, gather_host
from megatron_resrl.doctor.facts.rank import RankFacts, gather_rank
from megatron_resrl.doctor.needs import Needs
from megatron_resrl.doctor.rules.environment import judge_environment, judge_same_environment
from megatron_resrl.doctor.rules.host import judge_host, judge_numa

GB = 10**9
HOST = HostFacts(
    cpus=96,
    memory_total=2000 * GB,
    memory_available=1900 * GB,
    shared_memory=(1000 * GB, 999 * GB),
    infiniband=["mlx5_0"],
    interfaces=["eth0", "eth1", "ib0", "lo"],
    addresses=["10.0.0.1"],
    numa_cpus={0: list(range(48)), 1: list(range(48, 96))},
)
LIMITS = {"nofile": (65536, 65536), "memlock": (-1, -1), "nproc": (-1, -1), "core": (0, -1)}


def ranks(count=8, environment=None, **fields) -> list[RankFacts]:
    environment = {"OMP_NUM_THREADS": "1"} | (environment or {})
    rank = RankFacts(0, 0, "a", cpus=list(range(96)), limits=LIMITS, environment=environment)
    return [
        dataclasses.replace(rank, rank=number, local_rank=number, **fields)
        for number in range(count)
    ]


def rules(facts=HOST, own=None, needs=None) -> set[str]:
    own = ranks() if own is None else own
    return {each.rule for each in judge_host("a", facts, own, needs or Needs(), 8)}


def test_host_that_is_well_has_no_findings():
    assert rules() == set()


@pytest.mark.parametrize(
    ("changes", "needs", "rule"),
    [
        ({"shared_memory": (64 * 2**20, 64 * 2**20)}, {}, "host.shared_memory"),
        ({"shared_memory": (1000 * GB, 10**8)}, {}, "host.shared_memory"),
        ({"shared_memory": None}, {}, "host.shared_memory"),
        ({"shared_memory": (16 * GB, 10 * GB)}, {"transfer_dir": "/dev/shm", "export": 15 * GB},
         "host.weight_transfer"),
        ({"memory_limit": 500 * GB}, {"host_memory": 100 * GB}, "host.memory"),
        ({"memory_limit": 16 * GB}, {}, "host.memory"),
        ({"swap_used": 9 * GB}, {}, "host.swap"),
        ({"cpu_quota": 4.0}, {}, "host.cpu_quota"),
        ({"name_error": "Name or service not known"}, {}, "host.name"),
        ({"ports_in_use": [29500]}, {}, "host.port"),
    ],
)  # fmt: skip
def test_host_has_one_finding_for_one_fault(changes, needs, rule):
    assert rules(dataclasses.replace(HOST, **changes), needs=Needs(**needs)) == {rule}


@pytest.mark.parametrize(
    ("own", "rule"),
    [
        (ranks(limits=LIMITS | {"nofile": (1024, 65536)}), "host.open_files"),
        (ranks(limits=LIMITS | {"nproc": (1024, 1024)}), "host.processes"),
        (ranks(limits=LIMITS | {"memlock": (8 * 2**20, 8 * 2**20)}), "host.locked_memory"),
        (ranks(limits=LIMITS | {"core": (-1, -1)}), "host.core_files"),
        (ranks(environment={"OMP_NUM_THREADS": ""}), "host.threads"),
        (ranks(environment={"OMP_NUM_THREADS": "16"}), "host.threads"),
    ],
)
def test_host_has_one_finding_for_one_fault_of_its_ranks(own, rule):
    assert rules(own=own) == {rule}


def test_host_without_infiniband_needs_no_locked_memory():
    plain = dataclasses.replace(HOST, infiniband=[])
    own = ranks(limits=LIMITS | {"memlock": (8 * 2**20, 8 * 2**20)})
    assert rules(plain, own) == set()


def test_host_whose_ranks_share_one_cpu_says_so():
    assert rules(own=ranks(cpus=[3])) == {"host.cpus", "host.one_cpu"}
    assert rules(own=[dataclasses.replace(each, cpus=[each.rank]) for each in ranks()]) == {
        "host.one_cpu"
    }


def test_host_remedies_follow_the_hard_limit():
    def remedy(hard):
        own = ranks(1, limits=LIMITS | {"nofile": (1024, hard)})
        (found,) = judge_host("a", HOST, own, Needs(), 64)
        return found.remedy

    assert remedy(65536) == "run ulimit -n 1536 before the job starts"
    assert "/etc/security/limits.conf" in remedy(1024)


def test_host_with_ranks_far_from_their_gpus_says_so():
    gpus = GpuFacts(gpus=[Gpu(0, "x", numa_node=0), Gpu(1, "x", numa_node=1)])
    near = [dataclasses.replace(each, cpus=HOST.numa_cpus[each.rank]) for each in ranks(2)]
    far = [dataclasses.replace(each, cpus=HOST.numa_cpus[1 - each.rank]) for each in ranks(2)]
    assert not list(judge_numa("a", HOST, gpus, near))
    assert not list(judge_numa("a", HOST, gpus, ranks(2)))
    assert [each.rule for each in judge_numa("a", HOST, gpus, far)] == ["host.numa"] * 2


def test_host_reads_limits_of_control_groups(tmp_path: Path):
    """Version 2, a limit on a group above; version 1; none."""
    group = tmp_path / "sys/fs/cgroup/slurm/job_7/step_0"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/slurm/job_7/step_0\n")
    (group / "memory.max").write_text("max\n")
    assert gather_host([], tmp_path).memory_limit is None
    (group.parent / "memory.max").write_text("64000000000\n")
    (group.parent / "cpu.max").write_text("350000 100000\n")
    facts = gather_host([], tmp_path)
    assert (facts.memory_limit, facts.cpu_quota) == (64 * GB, 3.5)
    (tmp_path / "proc/self/cgroup").write_text("9:cpu,cpuacct:/x\n4:memory:/docker/5\n")
    old = tmp_path / "sys/fs/cgroup/memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("8000000000\n")
    assert gather_host([], tmp_path).memory_limit == 8 * GB
    (old / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert gather_host([], tmp_path).memory_limit is None


def test_host_reads_numa_nodes_and_cards(tmp_path: Path):
    for node, cpus in enumerate(("0-1,4", "2-3,5")):
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cpus + "\n")
    (tmp_path / "sys/class/infiniband/mlx5_0").mkdir(parents=True)
    facts = gather_host([], tmp_path)
    assert facts.numa_cpus == {0: [0, 1, 4], 1: [2, 3, 5]}
    assert (facts.infiniband, facts.shared_memory) == (["mlx5_0"], None)
    assert cpu_list("\n") == []


def test_host_finds_a_port_that_is_in_use():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        assert gather_host([port]).ports_in_use == [port]
    assert gather_host([port]).ports_in_use == []


def test_rank_knows_its_limits_and_the_libraries_variables():
    environment = {
        **{"RANK": "3", "LOCAL_RANK": "1", "SLURMD_NODENAME": "n7"},
        **{"NCCL_DEBUG": "INFO", "WANDB_API_KEY": "secret"},
    }
    facts = gather_rank(environment)
    assert str(facts.place) == "rank 3 (host n7, local rank 1)"
    assert facts.environment == {"NCCL_DEBUG": "INFO"}
    assert facts.limits["nofile"] == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert facts.cpus


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "CUDA_LAUNCH_BLOCKING"),
        ({"CUDA_LAUNCH_BLOCKING": "0"}, None),
        ({"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}, "TORCH_DISTRIBUTED_DEBUG"),
        ({"TORCH_DISTRIBUTED_DEBUG": "INFO"}, None),
        ({"NCCL_P2P_DISABLE": "1"}, "NCCL_P2P_DISABLE"),
        ({"NCCL_IB_DISABLE": "1"}, "NCCL_IB_DISABLE"),
        ({"NCCL_SOCKET_IFNAME": "eth"}, None),
        ({"NCCL_SOCKET_IFNAME": "^lo,docker"}, None),
        ({"NCCL_SOCKET_IFNAME": "=eth"}, "NCCL_SOCKET_IFNAME"),
        ({"NCCL_SOCKET_IFNAME": "enp5s0"}, "NCCL_SOCKET_IFNAME"),
        ({"GLOO_SOCKET_IFNAME": "ib0"}, None),
        ({"CUDA_DEVICE_MAX_CONNECTIONS": "1"}, None),
        ({"CUDA_DEVICE_MAX_CONNECTIONS": "32"}, "CUDA_DEVICE_MAX_CONNECTIONS"),
        ({"NCCL_ALGO": "Ring"}, "NCCL_ALGO"),
        ({"NCCL_DEBUG": "TRACE"}, "NCCL_DEBUG"),
        ({"NCCL_NVLS_ENABLE": "0"}, "NCCL_NVLS_ENABLE"),
    ],
)
def test_environment_variables_that_hurt_are_named(variables, name):
    (rank,) = ranks(1, environment=variables)
    found = [each.rule for each in judge_environment(rank, HOST, hosts=2, tensor_parallel=2)]
    assert found == ([f"environment.{name}"] if name else [])


def test_environment_that_differs_between_ranks_is_said():
    own = ranks(4, environment={"NCCL_PROTO": "Simple", "NCCL_IB_HCA": "mlx5_0"})
    assert not list(judge_same_environment(own))
    other = own[2].environment | {"NCCL_IB_HCA": "mlx5_2"}
    own[2] = dataclasses.replace(own[2], environment=other)
    assert not list(judge_same_environment(own))
    own[3] = dataclasses.replace(own[3], environment={})
    (found,) = judge_same_environment(own)
    assert found.problem == (
        "NCCL_PROTO differs between ranks: 'Simple' on rank 0 (host a, local rank 0) and 2 more; "
        "unset on rank 3 (host a, local rank 3)"
    )
