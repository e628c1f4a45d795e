"""Rules on environment variables: what is known to hurt, and what differs between ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from megatron_resrl.doctor.facts.host import HostFacts
from megatron_resrl.doctor.facts.rank import RankFacts
from megatron_resrl.doctor.finding import Finding, Severity, at

_ON = ("1", "true", "yes", "on", "y")


@dataclass(frozen=True)
class _Rule:
    """A variable that hurts with some values."""

    hurts: Callable[[str], bool]
    problem: str
    remedy: str = "unset it"
    severity: Severity = "wrong"


def _is_on(value: str) -> bool:
    return value.lower() in _ON


def _is_off(value: str) -> bool:
    return value.lower() in ("0", "false", "no", "off", "n")


def _is_level_zero(value: str) -> bool:
    return value.upper() in ("0", "LOC")


_THROUGH_HOST = "GPUs of a host exchange data through host memory instead of NVLink or PCIe"


_RULES: dict[str, _Rule] = {
    "CUDA_LAUNCH_BLOCKING": _Rule(_is_on, "the host waits for every kernel: several times slower"),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": _Rule(
        bool, "every tensor is allocated by the driver: many times slower"
    ),
    "TORCH_DISTRIBUTED_DEBUG": _Rule(
        lambda value: value.upper() == "DETAIL",
        "every collective is compared over gloo first: much slower",
        "unset it, or set it to INFO",
    ),
    "TORCH_NCCL_BLOCKING_WAIT": _Rule(
        _is_on, "the host waits for every collective, which then cannot overlap with computation"
    ),
    "TORCH_NCCL_DESYNC_DEBUG": _Rule(
        _is_on, "every collective is recorded in the store: slower", severity="note"
    ),
    "NCCL_DEBUG": _Rule(
        lambda value: value.upper() == "TRACE",
        "NCCL writes a line for every call",
        "set it to WARN or INFO",
    ),
    "NCCL_P2P_DISABLE": _Rule(_is_on, _THROUGH_HOST),
    "NCCL_P2P_LEVEL": _Rule(_is_level_zero, _THROUGH_HOST),
    "NCCL_SHM_DISABLE": _Rule(
        _is_on, "GPUs without NVLink or PCIe access exchange data through the network"
    ),
    "NCCL_CUMEM_ENABLE": _Rule(
        _is_off, "NVLink SHARP and buffers that are registered by users are off", severity="note"
    ),
    "NCCL_NVLS_ENABLE": _Rule(_is_off, "NVSwitch does not add up all-reduces", severity="note"),
    "NCCL_NET_GDR_LEVEL": _Rule(
        _is_level_zero,
        "network cards reach GPUs through host memory",
        severity="note",
    ),
    "NCCL_ALGO": _Rule(
        bool,
        "NCCL cannot choose the fastest algorithm for a size",
        "unset it, unless precision.deterministic wants it",
        "note",
    ),
    "NCCL_PROTO": _Rule(
        bool, "NCCL cannot choose the fastest protocol for a size", severity="note"
    ),
    "NVIDIA_TF32_OVERRIDE": _Rule(
        bool, "it replaces what the program says of TF32, and so the numbers", severity="note"
    ),
    "NVTE_FLASH_ATTN": _Rule(
        _is_off, "Transformer Engine's flash attention is off", severity="note"
    ),
    "NVTE_FUSED_ATTN": _Rule(
        _is_off, "Transformer Engine's fused attention is off", severity="note"
    ),
    "LD_PRELOAD": _Rule(
        lambda value: "nccl" in value or "cuda" in value,
        "it loads other libraries than torch was installed with",
        "unset it, unless it is meant",
        "note",
    ),
}

_INTERFACE_NAMES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
_DIFFER = ("NCCL_", "TORCH_NCCL_", "NVTE_", "CUDA_DEVICE_MAX_CONNECTIONS", "GLOO_", "UCX_", "FI_")
"""Variables that have to be the same on all ranks, or at least rarely differ on purpose."""
_OF_THE_HOST = ("_IFNAME", "_HCA", "_DEVICE", "_IFACE", "_FILE", "NET_DEVICES")
"""Ends of those among them that name devices or files of a host."""


def judge_environment(
    rank: RankFacts, host: HostFacts, *, hosts: int, tensor_parallel: int
) -> Iterator[Finding]:
    """The variables of one rank.

    Args:
        rank: Its facts.
        host: Of its host.
        hosts: Hosts of the job.
        tensor_parallel: Ranks that hold one layer together.
    """
    variables = rank.environment
    yield from at(str(rank.place), _hurtful(variables))
    yield from at(str(rank.place), _network(variables, host, hosts))
    connections = variables.get("CUDA_DEVICE_MAX_CONNECTIONS")
    if connections not in (None, "1") and tensor_parallel > 1:
        yield Finding(
            "environment.CUDA_DEVICE_MAX_CONNECTIONS",
            str(rank.place),
            f"CUDA_DEVICE_MAX_CONNECTIONS is {connections}: with tensor parallelism kernels do not "
            "start in the order of their calls, and communication does not overlap",
            "unset it: the run sets it to 1",
            "note",
        )


def judge_same_environment(ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    """Variables of the libraries that differ between ranks.

    Args:
        ranks: All of the job.
    """
    names = sorted({name for rank in ranks for name in rank.environment})
    for name in names:
        if not name.startswith(_DIFFER) or name.endswith(_OF_THE_HOST):
            continue
        values: dict[str | None, list[RankFacts]] = {}
        for rank in ranks:
            values.setdefault(rank.environment.get(name), []).append(rank)
        if len(values) > 1:
            listed = "; ".join(
                f"{'unset' if value is None else repr(value)} on {having[0].place}"
                + (f" and {len(having) - 1} more" if having[1:] else "")
                for value, having in values.items()
            )
            yield Finding(
                "environment.differs",
                "",
                f"{name} differs between ranks: {listed}",
                "export it to all ranks alike (srun --export, or the job script)",
            )


def _hurtful(variables: Mapping[str, str]) -> Iterator[Finding]:
    for name, rule in _RULES.items():
        value = variables.get(name)
        if value is not None and rule.hurts(value):
            yield Finding(
                f"environment.{name}",
                "",
                f"{name} is {value}: {rule.problem}",
                rule.remedy,
                rule.severity,
            )


def _network(variables: Mapping[str, str], host: HostFacts, hosts: int) -> Iterator[Finding]:
    for name in _INTERFACE_NAMES:
        value = variables.get(name, "")
        if value and not _names_an_interface(value, host.interfaces):
            yield Finding(
                f"environment.{name}",
                "",
                f"{name} is {value!r}, and the host has {', '.join(host.interfaces) or 'none'}",
                "name an interface of every host, or unset it",
            )
    disabled = _is_on(variables.get("NCCL_IB_DISABLE", ""))
    if disabled and host.infiniband and hosts > 1:
        yield Finding(
            "environment.NCCL_IB_DISABLE",
            "",
            f"NCCL_IB_DISABLE is on, and the host has {', '.join(host.infiniband)}: hosts exchange "
            "data by TCP, ten times slower",
            "unset it",
        )


def _names_an_interface(value: str, interfaces: Sequence[str]) -> bool:
    """As NCCL reads it: a list of beginnings; `=` before it: of names; `^`: of those to leave out.

    gloo takes a list of names.
    """
    exclude, rest = value.startswith("^"), value.removeprefix("^")
    exact, rest = rest.startswith("="), rest.removeprefix("=")
    wanted = [each.partition(":")[0] for each in rest.split(",") if each]

    def matches(interface: str) -> bool:
        return any(interface == name if exact else interface.startswith(name) for name in wanted)

    return any(matches(interface) != exclude for interface in interfaces)
