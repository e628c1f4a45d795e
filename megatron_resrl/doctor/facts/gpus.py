"""The GPUs of a host, as nvidia-smi reports them."""

from __future__ import annotations

import os
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron_resrl.doctor.processes import ask

MIB = 2**20

_QUERY_S = 60.0
"""Seconds; nvidia-smi takes some per GPU where the driver is not kept loaded, and hangs where a GPU
has fallen off the bus."""

_SLOWDOWNS = (
    "hw_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
    "sw_thermal_slowdown",
)
"""Reasons for low clocks that an idle GPU does not have."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    index: int
    """nvidia-smi's number."""
    name: str
    uuid: str = ""
    bus: str = ""
    """PCI address, as in /sys/bus/pci/devices."""
    memory: int = 0
    """Bytes."""
    free: int = 0
    """Bytes that no process uses."""
    processes: list[tuple[int, str, int]] = field(default_factory=list)
    """Process number, name and bytes of each process that computes on it."""
    compute_mode: str = "Default"
    persistence: bool | None = None
    mig: bool = False
    """Whether the GPU is cut into instances."""
    uncorrectable: int = 0
    """Memory errors since the driver was loaded that ECC could not correct."""
    uncorrectable_ever: int = 0
    remap_pending: bool = False
    """Whether faulty rows wait for a reset to be replaced."""
    remap_failed: bool = False
    reset_required: bool = False
    slowdowns: list[str] = field(default_factory=list)
    """Active reasons for low clocks."""
    temperature: int | None = None
    """Degrees Celsius."""
    power_limit: float | None = None
    """Watts."""
    default_power_limit: float | None = None
    pcie_width: tuple[int, int] | None = None
    """Lanes in use, and lanes that there are."""
    fabric: tuple[str, str] | None = None
    """State and status of the NVSwitch fabric; None: the GPU has none."""
    numa_node: int | None = None


@dataclass(frozen=True)
class GpuFacts:
    """The GPUs of one host that its ranks may use."""

    driver: str | None = None
    cuda: str | None = None
    """Newest CUDA that the driver can run."""
    gpus: list[Gpu] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    """`0-1` -> what connects these two: NV18 is 18 NVLinks; PIX, PXB, PHB, NODE, SYS are PCIe."""
    hidden: list[str] = field(default_factory=list)
    """Entries of CUDA_VISIBLE_DEVICES that name no GPU of the host."""
    failure: str | None = None
    """Why nothing is known; None with no GPUs: the host has no NVIDIA driver."""


def gather_gpus(environment: Mapping[str, str], root: Path = Path("/")) -> GpuFacts:
    """Asks nvidia-smi.

    Args:
        environment: CUDA_VISIBLE_DEVICES limits what is looked at.
        root: Where `sys` is.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        loaded = (root / "proc/driver/nvidia").exists()
        why = "the NVIDIA driver is loaded, and nvidia-smi is not in PATH" if loaded else None
        return GpuFacts(failure=why)
    said = ask([program, "-q", "-x"], _QUERY_S)
    if said.failure is not None:
        return GpuFacts(failure=f"nvidia-smi -q -x: {said.failure}; {said.output.strip()[-200:]}")
    try:
        facts = parse_query(said.output)
    except ET.ParseError as error:
        return GpuFacts(failure=f"nvidia-smi -q -x: no XML ({error})")
    gpus = [replace(gpu, numa_node=_numa_node(root, gpu.bus)) for gpu in facts.gpus]
    topology = ask([program, "topo", "-m"], _QUERY_S)
    found = replace(facts, gpus=gpus, links=parse_topology(topology.output))
    return visible(found, environment.get("CUDA_VISIBLE_DEVICES"))


def parse_query(text: str) -> GpuFacts:
    """What `nvidia-smi -q -x` says, of drivers from 470 on.

    Raises:
        xml.etree.ElementTree.ParseError: The text is no XML.
    """
    log = ET.fromstring(text)
    return GpuFacts(
        driver=_said(log, "driver_version"),
        cuda=_said(log, "cuda_version"),
        gpus=[_gpu(index, entry) for index, entry in enumerate(log.findall("gpu"))],
    )


def parse_topology(text: str) -> dict[str, str]:
    """The connections between GPUs in the matrix of `nvidia-smi topo -m`."""
    links: dict[str, str] = {}
    columns: list[str] = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines():
        cells = [cell.strip() for cell in line.split("\t")]
        if not columns:
            columns = [cell for cell in cells if re.fullmatch(r"GPU\d+", cell)]
            continue
        if not re.fullmatch(r"GPU\d+", cells[0]):
            continue
        row = int(cells[0].removeprefix("GPU"))
        for name, link in zip(columns, cells[1:], strict=False):
            other = int(name.removeprefix("GPU"))
            if row < other:
                links[f"{row}-{other}"] = link
    return links


def visible(facts: GpuFacts, names: str | None) -> GpuFacts:
    """The facts of the GPUs that CUDA_VISIBLE_DEVICES names.

    Args:
        facts: Of all GPUs of the host.
        names: Numbers or the beginnings of UUIDs, separated by commas; None: all.
    """
    if names is None:
        return facts
    kept: list[Gpu] = []
    hidden: list[str] = []
    for name in filter(None, (each.strip() for each in names.split(","))):
        found = [
            gpu
            for gpu in facts.gpus
            if name == str(gpu.index) or (name.startswith(("GPU-", "MIG-")) and _is(gpu, name))
        ]
        kept += found
        hidden += [] if found else [name]
    numbers = {gpu.index for gpu in kept}
    links = {
        pair: link
        for pair, link in facts.links.items()
        if set(map(int, pair.split("-"))) <= numbers
    }
    return replace(facts, gpus=kept, links=links, hidden=hidden)


def _is(gpu: Gpu, name: str) -> bool:
    # Instances of MIG have UUIDs of their own, which the query does not connect to a GPU.
    return gpu.uuid.startswith(name) if name.startswith("GPU-") else gpu.mig


def _gpu(index: int, entry: ET.Element) -> Gpu:
    throttled = entry.find("clocks_event_reasons")
    if throttled is None:
        throttled = entry.find("clocks_throttle_reasons")  # Before driver 535.
    reasons = [] if throttled is None else [each.tag for each in throttled if each.text == "Active"]
    short = [name.partition("_reason_")[2] for name in reasons]
    readings = (
        "gpu_power_readings" if entry.find("gpu_power_readings") is not None else ("power_readings")
    )
    limit = _number(entry, f"{readings}/current_power_limit")
    width = _number(entry, "pci/pci_gpu_link_info/link_widths/current_link_width")
    widest = _number(entry, "pci/pci_gpu_link_info/link_widths/max_link_width")
    state, status = _said(entry, "fabric/state"), _said(entry, "fabric/status")
    return Gpu(
        index=index,
        name=_said(entry, "product_name") or "?",
        uuid=_said(entry, "uuid") or "",
        bus=_sysfs_address(entry.get("id", "")),
        memory=int(MIB * (_number(entry, "fb_memory_usage/total") or 0)),
        free=int(MIB * (_number(entry, "fb_memory_usage/free") or 0)),
        processes=list(_processes(entry)),
        compute_mode=_said(entry, "compute_mode") or "Default",
        persistence=_flag(entry, "persistence_mode", "Enabled"),
        mig=bool(_flag(entry, "mig_mode/current_mig", "Enabled")),
        uncorrectable=_uncorrectable(entry, "volatile"),
        uncorrectable_ever=_uncorrectable(entry, "aggregate"),
        remap_pending=bool(_flag(entry, "remapped_rows/remapped_row_pending", "Yes"))
        or bool(_flag(entry, "retired_pages/pending_retirement", "Yes")),
        remap_failed=bool(_flag(entry, "remapped_rows/remapped_row_failure", "Yes")),
        reset_required=bool(_flag(entry, "gpu_reset_status/reset_required", "Yes")),
        slowdowns=[name for name in short if name in _SLOWDOWNS],
        temperature=None if (heat := _number(entry, "temperature/gpu_temp")) is None else int(heat),
        power_limit=_number(entry, f"{readings}/power_limit") if limit is None else limit,
        default_power_limit=_number(entry, f"{readings}/default_power_limit"),
        pcie_width=None if width is None or widest is None else (int(width), int(widest)),
        fabric=None if state is None else (state, status or ""),
    )


def _uncorrectable(entry: ET.Element, period: str) -> int:
    """Errors of all memories; their names differ between generations of GPUs."""
    counts = entry.find(f"ecc_errors/{period}")
    if counts is None:
        return 0
    double = counts.find("double_bit/total")
    if double is not None:
        return int(_leading_number(double.text) or 0)
    found = (each for each in counts if "uncorrectable" in each.tag and not len(each))
    return sum(int(_leading_number(each.text) or 0) for each in found)


def _processes(entry: ET.Element) -> Iterator[tuple[int, str, int]]:
    for process in entry.findall("processes/process_info"):
        if "C" in (_said(process, "type") or ""):
            used = MIB * (_number(process, "used_memory") or 0)
            name = (_said(process, "process_name") or "?").split(" ")[0]
            yield int(_number(process, "pid") or 0), os.path.basename(name), int(used)


def _said(entry: ET.Element, path: str) -> str | None:
    """The text of an element; None: there is none, or the GPU does not have it."""
    text = (entry.findtext(path) or "").strip()
    return None if text in ("", "N/A", "[N/A]", "None", "Not Found", "Unknown Error") else text


def _number(entry: ET.Element, path: str) -> float | None:
    return _leading_number(_said(entry, path))


def _leading_number(text: str | None) -> float | None:
    """`81559 MiB` -> 81559.0; `16x` -> 16.0."""
    found = re.match(r"\d+(?:\.\d+)?", (text or "").strip())
    return float(found[0]) if found else None


def _flag(entry: ET.Element, path: str, yes: str) -> bool | None:
    text = _said(entry, path)
    return None if text is None else text == yes


def _sysfs_address(bus: str) -> str:
    """`00000000:1B:00.0` -> `0000:1b:00.0`."""
    domain, _, rest = bus.partition(":")
    return f"{domain[-4:]}:{rest}".lower() if rest else ""


def _numa_node(root: Path, bus: str) -> int | None:
    try:
        node = int((root / "sys/bus/pci/devices" / bus / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None
