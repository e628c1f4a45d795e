"""Rules on GPUs: errors, other processes, clocks, links, and that all are alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from megatron_resrl.doctor.facts.gpus import Gpu, GpuFacts
from megatron_resrl.doctor.facts.rank import RankFacts
from megatron_resrl.doctor.finding import Finding, at
from megatron_resrl.platform.disk import format_bytes

_USED_SHARE = 0.02
"""Of a GPU's memory: more in use before a run starts belongs to another process."""
_FABRIC_READY = ("Completed", "Success")


def judge_gpus(
    host: str, facts: GpuFacts, ranks: Sequence[RankFacts], device_memory: int = 0
) -> Iterator[Finding]:
    """The GPUs of one host.

    Args:
        host: Its name.
        facts: Of its GPUs.
        ranks: Of the job, on this host.
        device_memory: Bytes that each rank needs for weights, gradients and optimizer.
    """
    yield from at(f"host {host}", _host(facts, ranks))
    for gpu in facts.gpus:
        where = f"GPU {gpu.index} of host {host}"
        yield from at(where, _health(gpu))
        yield from at(where, _memory(gpu, device_memory))
        yield from at(where, _speed(gpu))


def judge_likeness(gpus: Mapping[str, GpuFacts]) -> Iterator[Finding]:
    """All hosts have the same GPUs, and the same power for them.

    Args:
        gpus: By host.
    """
    kinds: dict[str, list[str]] = {}
    for host, facts in gpus.items():
        names = Counter(gpu.name for gpu in facts.gpus)
        text = " and ".join(f"{count} x {name}" for name, count in sorted(names.items()))
        kinds.setdefault(text or "no GPUs", []).append(host)
    mixed = any(len({gpu.name for gpu in facts.gpus}) > 1 for facts in gpus.values())
    if len(kinds) > 1 or mixed:
        listed = "; ".join(f"{kind} on {', '.join(hosts[:4])}" for kind, hosts in kinds.items())
        yield Finding(
            "gpus.mixed",
            "",
            f"GPUs differ: {listed}: every step waits for the slowest, and the smallest memory "
            "limits all",
            "ask the scheduler for one kind (--constraint, --gpus-per-node=TYPE:N), or exclude the "
            "hosts that differ",
        )
    limits = {gpu.power_limit for facts in gpus.values() for gpu in facts.gpus}
    if len(limits) > 1 and not mixed and len(kinds) == 1:
        listed = ", ".join(f"{limit:.0f} W" for limit in sorted(filter(None, limits)))
        yield Finding(
            "gpus.power_differs",
            "",
            f"GPUs have different power limits ({listed}): every step waits for the slowest",
            "set the same for all with nvidia-smi --power-limit",
        )


def _host(facts: GpuFacts, ranks: Sequence[RankFacts]) -> Iterator[Finding]:
    if facts.failure is not None:
        yield Finding(
            "gpus.driver",
            "",
            f"the GPUs cannot be asked ({facts.failure})",
            "see `dmesg | grep -i xid` and `systemctl status nvidia-persistenced`; a GPU that has "
            "fallen off the bus needs a reboot",
        )
    for name in facts.hidden:
        yield Finding(
            "gpus.visible",
            "",
            f"CUDA_VISIBLE_DEVICES names {name!r}, and the host has no such GPU; CUDA hides those "
            "that follow it, too",
            "correct it, or leave it to the scheduler",
        )
    # A rank may see one GPU of its own, of which the first rank of the host knows nothing.
    own = len({rank.environment.get("CUDA_VISIBLE_DEVICES") for rank in ranks}) > 1
    if facts.gpus and len(ranks) > len(facts.gpus) and not own:
        yield Finding(
            "gpus.too_few",
            "",
            f"{len(ranks)} ranks and {len(facts.gpus)} GPUs",
            "start as many ranks on a host as it has GPUs",
        )
    links = Counter(facts.links.values())
    direct = {link: count for link, count in links.items() if link.startswith("NV")}
    if direct and len(links) > 1:
        usual = max(direct, key=lambda link: direct[link])
        odd = [f"{pair} ({link})" for pair, link in facts.links.items() if link != usual]
        # GPUs that are joined in pairs by bridges have PCIe between the pairs.
        if len(odd) * 2 < len(facts.links):
            yield Finding(
                "gpus.nvlink",
                "",
                f"most GPUs are joined by {usual}, and not these: {', '.join(odd[:8])}",
                "see `nvidia-smi nvlink --status`; links that stay down need the vendor",
            )


def _health(gpu: Gpu) -> Iterator[Finding]:
    if gpu.remap_failed:
        yield Finding(
            "gpus.memory_broken",
            "",
            "faulty memory rows can no longer be replaced",
            "exclude the host and have the GPU exchanged",
        )
    elif gpu.uncorrectable:
        yield Finding(
            "gpus.memory_errors",
            "",
            f"{gpu.uncorrectable} memory errors that ECC could not correct since the driver was "
            "loaded",
            "drain the host and reset the GPU (nvidia-smi --gpu-reset); exclude it if they return",
        )
    elif gpu.remap_pending:
        yield Finding(
            "gpus.memory_pending",
            "",
            "faulty memory rows wait to be replaced",
            "drain the host and reset the GPU (nvidia-smi --gpu-reset)",
        )
    elif gpu.uncorrectable_ever:
        yield Finding(
            "gpus.memory_history",
            "",
            f"{gpu.uncorrectable_ever} memory errors that ECC could not correct in its life",
            "watch it: a GPU whose errors return is to be exchanged",
            "note",
        )
    if gpu.reset_required:
        yield Finding(
            "gpus.reset",
            "",
            "the driver asks for a reset of the GPU",
            "drain the host and run nvidia-smi --gpu-reset, or reboot",
        )
    if gpu.fabric is not None and gpu.fabric != _FABRIC_READY:
        yield Finding(
            "gpus.fabric",
            "",
            f"the NVSwitch fabric is not ready (state {gpu.fabric[0]}, status {gpu.fabric[1]}): "
            "CUDA does not start, or without NVLink",
            "start the fabric manager of the driver's version (systemctl status "
            "nvidia-fabricmanager)",
        )
    if gpu.mig:
        yield Finding(
            "gpus.mig",
            "",
            "it is cut into instances (MIG): a rank gets one of them, and NCCL cannot connect "
            "instances",
            "turn MIG off (nvidia-smi --multi-instance-gpu 0), or take other hosts",
        )
    if gpu.compute_mode == "Prohibited":
        yield Finding(
            "gpus.compute_mode",
            "",
            "its compute mode is Prohibited",
            "run nvidia-smi --compute-mode 0",
        )
    elif gpu.compute_mode != "Default":
        yield Finding(
            "gpus.compute_mode",
            "",
            f"its compute mode is {gpu.compute_mode}: a vLLM server cannot share it with the "
            "trainer",
            "run nvidia-smi --compute-mode 0 for rollout.placement colocated",
            "note",
        )


def _memory(gpu: Gpu, device_memory: int) -> Iterator[Finding]:
    used = sum(size for *_, size in gpu.processes)
    if used > _USED_SHARE * gpu.memory:
        listed = ", ".join(
            f"{name} {number} ({format_bytes(size)})" for number, name, size in gpu.processes[:4]
        )
        yield Finding(
            "gpus.in_use",
            "",
            f"other processes compute on it: {listed}; {format_bytes(gpu.free)} are free",
            "end them, or wait for them; those of an earlier job may have survived it",
        )
    elif gpu.memory and gpu.free < (1 - 5 * _USED_SHARE) * gpu.memory and not gpu.mig:
        # Processes of other containers and users are not listed.
        yield Finding(
            "gpus.in_use",
            "",
            f"{format_bytes(gpu.free)} of {format_bytes(gpu.memory)} are free, and no process is "
            "listed: it runs in another container, or for another user",
            "ask the host's administrator, or take another GPU",
        )
    if device_memory and gpu.memory and device_memory > gpu.memory:
        yield Finding(
            "gpus.too_small",
            "",
            f"it has {format_bytes(gpu.memory)}, and a rank of the recipe needs "
            f"{format_bytes(device_memory)} for weights, gradients and optimizer alone",
            "use more GPUs or more model parallelism; `megatron-resrl plan --search` finds layouts",
        )


def _speed(gpu: Gpu) -> Iterator[Finding]:
    if gpu.slowdowns:
        heat = f" at {gpu.temperature} C" if gpu.temperature is not None else ""
        yield Finding(
            "gpus.slowed",
            "",
            f"its clocks are lowered{heat} ({', '.join(gpu.slowdowns)})",
            "see cooling and power supply of the host; exclude it until then",
        )
    limit, usual = gpu.power_limit, gpu.default_power_limit
    if limit is not None and usual is not None and limit < 0.95 * usual:
        yield Finding(
            "gpus.power",
            "",
            f"its power limit is {limit:.0f} W, and {usual:.0f} W by default",
            "raise it with nvidia-smi --power-limit, unless the site wants it so",
            "note",
        )
    if gpu.pcie_width is not None and gpu.pcie_width[0] < gpu.pcie_width[1]:
        lanes, there = gpu.pcie_width
        yield Finding(
            "gpus.pcie",
            "",
            f"it uses {lanes} of {there} PCIe lanes",
            "have the card or its riser seated again; exclude the host until then",
        )
    if gpu.persistence is False:
        yield Finding(
            "gpus.persistence",
            "",
            "the driver is not kept loaded (persistence mode off): each start takes seconds longer",
            "run nvidia-smi --persistence-mode 1, or start nvidia-persistenced",
            "note",
        )
