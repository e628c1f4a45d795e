"""What `plan` prints, as plain text."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_resrl.observe.text_table import columns
from megatron_resrl.planning.fit import ASLEEP_BYTES, MARGIN_BYTES, MARGIN_SHARE
from megatron_resrl.planning.forecast import ONCE, Forecast
from megatron_resrl.planning.layers import layers_sentence
from megatron_resrl.planning.links import traffic_seconds

GIB = 2**30
GB = 1e9

_SMALL_BYTES, _SMALL_S = 10**7, 0.01
"""Traffic below both is counted and not listed."""

_LINES = 5
"""Lines of waits of a phase."""


def report(found: Forecast) -> Iterator[str]:
    """The lines of a forecast."""
    yield from _heading(found)
    yield from _memory(found)
    yield from _holders(found)
    yield from _traffic(found)
    yield from _waits(found)
    yield from _seconds(found)
    yield from _verdict(found)


def layout_words(found: Forecast) -> str:
    """TP4 PP4 DP4, with what is not 1."""
    parallel = found.job.recipe.parallel
    sizes = {
        "TP": parallel.tensor_model_parallel_size,
        "PP": parallel.pipeline_model_parallel_size,
        "VPP": parallel.virtual_pipeline_model_parallel_size or 1,
        "CP": parallel.context_parallel_size,
        "EP": parallel.expert_model_parallel_size,
        "DP": found.job.work.replicas,
    }
    return " ".join(f"{name}{size}" for name, size in sizes.items() if size > 1) or "one rank"


def _heading(found: Forecast) -> Iterator[str]:
    job = found.job
    cluster = job.cluster
    yield (
        f"{cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu.name} with "
        f"{cluster.gpu.memory / GIB:.1f} GiB each: {layout_words(found)}; "
        f"{job.model.parameters.total / GB:.3g} billion parameters"
    )
    yield f"a step: {job.step_in_words}"
    if job.layers is not None:
        yield layers_sentence(job.layers)


def _memory(found: Forecast) -> Iterator[str]:
    yield ""
    yield (
        f"memory in GiB, of the rank that needs most; with {MARGIN_SHARE:.0%} + "
        f"{MARGIN_BYTES / GIB:.0f} GiB for context, NCCL, fragmentation and workspaces"
        + (f", and {ASLEEP_BYTES / GIB:.0f} for vLLM asleep" if found.job.shares_gpus else "")
    )
    needed = {verdict.what: verdict for verdict in found.verdicts}
    rows = [["phase", "rank", "peak", "needed", "fits", "at the peak"]]
    for name, (role, phase) in found.most_demanding().items():
        verdict = needed[f"{name}, {role}"]
        kinds = sorted(phase.peak_by_kind.items(), key=lambda item: -item[1])
        held = ", ".join(f"{kind} {size / GIB:.1f}" for kind, size in kinds if size > 0.05 * GIB)
        rows.append(
            [
                name,
                role,
                f"{phase.peak_bytes / GIB:.1f}",
                f"{verdict.needed / GIB:.1f}",
                "yes" if verdict.fits else "NO",
                held,
            ]
        )
    in_records = {f"{phase.name}, {rank.role}" for rank in found.ranks for phase in rank.phases}
    for verdict in found.verdicts:
        if verdict.what not in in_records:
            size = f"{verdict.needed / GIB:.1f}"
            held = f"of {verdict.available / GIB:.1f}"
            rows.append(["", verdict.what, "-", size, "yes" if verdict.fits else "NO", held])
    yield from columns(rows)


def _holders(found: Forecast) -> Iterator[str]:
    rows = [
        [name, f"{holder.bytes / GIB:.2f}", holder.kind, holder.line]
        for name, (_, phase) in found.most_demanding().items()
        for holder in phase.holders
    ]
    if rows:
        yield ""
        yield "largest holders at the peak, GiB"
        yield from columns([["phase", "GiB", "kind", "line"], *rows])


def _traffic(found: Forecast) -> Iterator[str]:
    job = found.job
    rows, small = [], 0
    for name, phase in found.slowest_records().items():
        for traffic in phase.traffic:
            wire, seconds = traffic_seconds(traffic, job.recipe.parallel, job.cluster)
            if traffic.bytes < _SMALL_BYTES and seconds < _SMALL_S:
                small += 1
                continue
            rows.append(
                [
                    name,
                    traffic.group,
                    str(traffic.size),
                    traffic.collective,
                    str(traffic.calls),
                    f"{traffic.bytes / GB:.2f}",
                    f"{seconds:.2f}",
                    wire,
                ]
            )
    if rows:
        yield ""
        yield "communication of the slowest rank; GB are what it sends"
        heading = ["phase", "group", "ranks", "collective", "calls", "GB", "s", "wire"]
        yield from columns([heading, *rows])
        if small:
            yield f"  and {small} of less than 10 MB and 10 ms"


def _waits(found: Forecast) -> Iterator[str]:
    rows = [
        [name, str(wait.count), wait.line]
        for name, phase in found.slowest_records().items()
        for wait in sorted(phase.waits, key=lambda each: -each.count)[:_LINES]
    ]
    if rows:
        yield ""
        yield "where the slowest rank's host waits for the device: the five most frequent lines"
        yield from columns([["phase", "times", "line"], *rows])


def _seconds(found: Forecast) -> Iterator[str]:
    yield ""
    yield "seconds, of the slowest rank"
    heading = ["phase", "s", "rank", "TFLOP", "matrix", "memory", "nvlink", "network", "host"]
    rows = [[*heading, "bubble"]]
    for name, (role, seconds) in found.phases.items():
        phase = found.record(role, name)
        host = seconds.launches + seconds.waits + seconds.copies + seconds.wires["host"]
        rows.append(
            [
                name,
                f"{seconds.total:.1f}",
                role,
                f"{sum(phase.matrix_flops.values()) / 1e12:.0f}",
                f"{seconds.matrix:.1f}",
                f"{seconds.memory:.1f}",
                f"{seconds.wires['nvlink']:.1f}",
                f"{seconds.wires['network']:.1f}",
                f"{host:.1f}",
                f"{seconds.bubble:.1f}",
            ]
        )
    yield from columns(rows)
    if generation := found.generation:
        yield (
            f"  {found.job.engine_in_words}: {generation.total:.1f} s = prefill "
            f"{generation.prefill:.1f} + {generation.steps:.0f} decoding steps "
            f"{generation.decode:.1f}, {generation.running} responses at once"
        )
    parts = " + ".join(f"{name} {seconds:.1f}" for name, seconds in found.parts.items())
    yield f"  a step: {found.step_seconds:.1f} s = {parts}"
    once = [name for name in found.phases if name in ONCE]
    if once:
        yield f"  not part of a step: {', '.join(once)}"
    if rates := found.rates:
        per_second, ranks = rates["tokens_per_second"], found.job.cluster.world_size
        yield (
            f"  {per_second:,.0f} tokens/s, {per_second / ranks:,.0f} of each GPU, with "
            f"{rates['model_tflops_per_gpu']:.0f} TFLOP/s of the model: MFU {rates['mfu']:.1%}"
        )
    disk = found.job.disk
    checkpoint, export = (f"{size / GB:.1f} GB" for size in (disk.checkpoint, disk.export))
    yield f"  on disk: {checkpoint} of a checkpoint, {export} of the export"


def _verdict(found: Forecast) -> Iterator[str]:
    yield ""
    if found.fits:
        yield "fits"
        return
    failing = [each for each in found.verdicts if not each.fits]
    worst = max(failing, key=lambda each: each.needed - each.available)
    yield (
        f"does not fit: {worst.what} needs {worst.needed / GIB:.1f} GiB of "
        f"{worst.available / GIB:.1f}; what helps, the cheapest first:"
    )
    yield from (f"  - {change}" for change in found.changes)
