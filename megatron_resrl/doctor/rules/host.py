"""Rules on a host and on what its ranks may use of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from megatron_resrl.doctor.facts.gpus import GpuFacts
from megatron_resrl.doctor.facts.host import HostFacts
from megatron_resrl.doctor.facts.rank import RankFacts
from megatron_resrl.doctor.finding import Finding, at
from megatron_resrl.doctor.needs import Needs
from megatron_resrl.platform.disk import format_bytes

SHARED_MEMORY = 2**30
"""Bytes of /dev/shm that NCCL, data loaders and checkpoint writers want; containers give 64 MB."""
FILES, FILES_PER_RANK = 1024, 8
"""Open files of a process, and of each rank that it is connected to."""
PROCESSES = 4096
"""Processes and threads of a user."""
_RANK_MEMORY = 4 * 2**30
"""Bytes of host memory below which a rank on a GPU does not come far."""
_SWAP = 2**30


def judge_host(
    host: str, facts: HostFacts, ranks: Sequence[RankFacts], needs: Needs, world_size: int
) -> Iterator[Finding]:
    """One host.

    Args:
        host: Its name.
        facts: Of the host.
        ranks: Of the job, on this host.
        needs: Of the recipe.
        world_size: Ranks of the job.
    """
    yield from at(f"host {host}", _shared_memory(facts, needs))
    yield from at(f"host {host}", _memory(facts, len(ranks), needs))
    yield from at(f"host {host}", _cpus(facts, ranks))
    yield from at(f"host {host}", _name_and_ports(facts, world_size))
    for rank in ranks:
        yield from at(str(rank.place), _limits(rank.limits, facts, world_size))
        yield from at(str(rank.place), _threads(rank, facts, len(ranks)))


def judge_numa(
    host: str, facts: HostFacts, gpus: GpuFacts, ranks: Sequence[RankFacts]
) -> Iterator[Finding]:
    """Ranks that may not use the CPUs beside their GPU.

    Args:
        host: Its name.
        facts: Of the host.
        gpus: Of the host.
        ranks: Of the job, on this host; rank i of a host uses its GPU i.
    """
    for rank in ranks:
        if rank.local_rank >= len(gpus.gpus):
            continue
        gpu = gpus.gpus[rank.local_rank]
        beside = facts.numa_cpus.get(-1 if gpu.numa_node is None else gpu.numa_node)
        if beside and rank.cpus and not set(beside) & set(rank.cpus):
            yield Finding(
                "host.numa",
                str(rank.place),
                f"its CPUs are all on another NUMA node than its GPU {gpu.index}: copies between "
                "host and GPU are slower",
                "let the launcher bind ranks to the CPUs beside their GPUs (srun "
                "--gpu-bind=closest), or not at all (--cpu-bind=none)",
                "note",
            )


def _shared_memory(facts: HostFacts, needs: Needs) -> Iterator[Finding]:
    larger = "make it larger (docker run --shm-size=16g, or mount -o remount,size=16g /dev/shm)"
    if facts.shared_memory is None:
        yield Finding(
            "host.shared_memory", "", "there is no /dev/shm", "mount a tmpfs there, of 16 GB"
        )
        return
    total, free = facts.shared_memory
    if total < SHARED_MEMORY:
        yield Finding(
            "host.shared_memory",
            "",
            f"/dev/shm has {format_bytes(total)}: NCCL and data loaders need more",
            larger,
        )
    elif free < SHARED_MEMORY:
        yield Finding(
            "host.shared_memory",
            "",
            f"{format_bytes(free)} of {format_bytes(total)} are free in /dev/shm",
            "delete what processes that are gone have left there",
        )
    if needs.transfer_dir.startswith("/dev/shm") and free < needs.export:
        yield Finding(
            "host.weight_transfer",
            "",
            f"{format_bytes(free)} are free in /dev/shm, and weights of "
            f"{format_bytes(needs.export)} go to the servers through it",
            f"{larger}, or set vllm.transfer_dir to another folder",
        )


def _memory(facts: HostFacts, ranks: int, needs: Needs) -> Iterator[Finding]:
    limit = min(facts.memory_total, facts.memory_limit or facts.memory_total)
    whose = "the job may use" if limit < facts.memory_total else "the host has"
    needed = ranks * needs.host_memory
    if needed > limit:
        yield Finding(
            "host.memory",
            "",
            f"{whose} {format_bytes(limit)} of memory, and {ranks} ranks need "
            f"{format_bytes(needed)} while a checkpoint is written in the background",
            "ask for more (sbatch --mem=0: all), or set checkpoint.async_save to false",
        )
    elif limit < facts.memory_total and limit < ranks * _RANK_MEMORY:
        yield Finding(
            "host.memory",
            "",
            f"the job may use {format_bytes(limit)} of the host's "
            f"{format_bytes(facts.memory_total)}, for {ranks} ranks",
            "ask for more (sbatch --mem=0: all)",
            "note",
        )
    if facts.swap_used > _SWAP:
        yield Finding(
            "host.swap",
            "",
            f"{format_bytes(facts.swap_used)} of memory are swapped out",
            "see what else runs there; swapoff where only jobs run",
            "note",
        )


def _cpus(facts: HostFacts, ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    if facts.cpu_quota is not None and facts.cpu_quota < len(ranks):
        yield Finding(
            "host.cpu_quota",
            "",
            f"the job may use {facts.cpu_quota:g} CPUs at a time, for {len(ranks)} ranks",
            "ask for more (--cpus-per-task, docker run --cpus)",
        )
    usable = {cpu for rank in ranks for cpu in rank.cpus}
    if ranks and len(usable) < len(ranks) and len(usable) < facts.cpus:
        yield Finding(
            "host.cpus",
            "",
            f"{len(ranks)} ranks share {len(usable)} of the host's {facts.cpus} CPUs",
            "ask for more (srun --cpus-per-task)",
        )


def _name_and_ports(facts: HostFacts, world_size: int) -> Iterator[Finding]:
    if facts.name_error is not None:
        yield Finding(
            "host.name",
            "",
            f"its own name has no address ({facts.name_error}): gloo takes the loopback interface, "
            "which other hosts cannot reach",
            "add the name to /etc/hosts or DNS, or set GLOO_SOCKET_IFNAME",
            "wrong" if world_size > 1 else "note",
        )
    for port in facts.ports_in_use:
        yield Finding(
            "host.port",
            "",
            f"another process listens at port {port}, where ranks meet by default",
            "end it, or start ranks at another port (torchrun --master-port, MASTER_PORT)",
            "note",
        )


def _limits(
    limits: Mapping[str, tuple[int, int]], facts: HostFacts, world_size: int
) -> Iterator[Finding]:
    def less(name: str, wanted: float) -> bool:
        soft = limits.get(name, (-1, -1))[0]
        return soft != -1 and soft < wanted

    def remedy(name: str, option: str, wanted: str) -> str:
        hard = limits[name][1]
        if hard == -1 or (wanted.isdecimal() and hard >= int(wanted)):
            return f"run ulimit -{option} {wanted} before the job starts"
        return f"have the administrator raise it ({name} in /etc/security/limits.conf)"

    files = FILES + FILES_PER_RANK * world_size
    if less("nofile", files):
        yield Finding(
            "host.open_files",
            "",
            f"a process may open {limits['nofile'][0]} files, and {world_size} ranks need {files}",
            remedy("nofile", "n", str(files)),
        )
    if less("nproc", PROCESSES):
        yield Finding(
            "host.processes",
            "",
            f"the user may have {limits['nproc'][0]} processes and threads",
            remedy("nproc", "u", str(PROCESSES)),
        )
    if facts.infiniband and less("memlock", float("inf")):
        yield Finding(
            "host.locked_memory",
            "",
            f"a process may lock {format_bytes(limits['memlock'][0])} of memory: InfiniBand needs "
            "more, and NCCL fails or falls back to TCP",
            remedy("memlock", "l", "unlimited"),
        )
    if limits.get("core", (0, 0))[0] == -1:
        yield Finding(
            "host.core_files",
            "",
            "core files are not limited: a rank that crashes writes all of its memory to disk",
            "run ulimit -c 0 before the job starts",
            "note",
        )


def _threads(rank: RankFacts, facts: HostFacts, ranks: int) -> Iterator[Finding]:
    if len(rank.cpus) == 1 and facts.cpus > 1:
        yield Finding(
            "host.one_cpu",
            "",
            f"it may run on one of the host's {facts.cpus} CPUs: graders, checkpoint writers and "
            "the launch of kernels share it",
            "ask for more (srun --cpus-per-task), or do not bind (--cpu-bind=none)",
        )
    given = rank.environment.get("OMP_NUM_THREADS", "")
    if ranks > 1 and not given:
        yield Finding(
            "host.threads",
            "",
            f"OMP_NUM_THREADS is not set: each of {ranks} ranks starts {len(rank.cpus)} threads",
            f"set it to {max(1, len(rank.cpus) // ranks)}",
            "note",
        )
    elif given.isdecimal() and int(given) * ranks > facts.cpus and int(given) > 1:
        yield Finding(
            "host.threads",
            "",
            f"OMP_NUM_THREADS is {given}: {ranks} ranks start more threads than the host has CPUs "
            f"({facts.cpus})",
            f"set it to {max(1, facts.cpus // ranks)}",
            "note",
        )
