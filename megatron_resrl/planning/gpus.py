"""GPUs and networks: how much memory there is, and how fast each part can be.

Sources. Memory bandwidth and links: NVIDIA's data sheets of A100, H100, H200, L40S, DGX A100, DGX
H100, DGX H200 and DGX B200; the peaks of matrix products are in `platform/gpu_peaks.py`. Memory:
what nvidia-smi reports. Shares of a peak that are reached: measurements, each named where it
stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_resrl.errors import SettingError
from megatron_resrl.platform.gpu_peaks import PEAKS, matrix_peaks

MIB = 2**20

MATRIX_SHARE = 0.75
"""Of the fastest matrix product that was measured on a GPU, what the products of a whole training
step reach. Llama 3's pre-training (arXiv 2407.21783, table 4: 430 TFLOP/s of an H100's 989 with TP8
PP16, 32 micro-batches): take away the pipeline's bubble, tensor-parallel traffic and memory-bound
kernels, and the products run at 0.60 of the peak, which is 0.75 of the 0.803 measured at best."""

MEMORY_SHARE = 0.77
"""Of the memory bandwidth: vLLM decodes one response of Llama 3.1 8B (16.06 GB of weights) at 75
tokens/s on an A100 with 1.555 TB/s (johnmusgrave.com, vLLM 0.23, 2026)."""

NVLINK_SHARE = 0.80
"""Of one direction of NVLink: NCCL's all-gather and reduce-scatter over 8 H200 reach 361 and 363
of 450 GB/s (stas00/ml-engineering, network)."""

NETWORK_SHARE = 0.74
"""Of a network card: an all-reduce over 4 nodes of 8 B200 moves 37 of 50 GB/s per GPU (stas00/
ml-engineering, network)."""

_BEST_MATRIX = 0.80
"""Share of the peak of the fastest matrix product, where nobody has published a measurement."""


@dataclass(frozen=True)
class Gpu:
    """One GPU and its share of a node.

    Attributes:
        name: As the command line names it.
        memory: Bytes.
        capability: CUDA's compute capability, major and minor.
        matrix_flops: Peak of dense matrix products by dtype name, FLOP/s.
        best_matrix: Share of the peak that the fastest measured product reaches, by dtype name.
        memory_bandwidth: Bytes/s.
        nvlink: Bytes/s in one direction to the other GPUs of the node, together; PCIe where there
            is no NVLink.
        network: Bytes/s in one direction between nodes, per GPU.
        host_link: Bytes/s in one direction between the GPU and host memory.
    """

    name: str
    memory: int
    capability: tuple[int, int]
    matrix_flops: Mapping[str, float]
    best_matrix: Mapping[str, float]
    memory_bandwidth: float
    nvlink: float
    network: float
    host_link: float

    def matrix_rate(self, dtype: str) -> float:
        """FLOP/s that matrix products of a dtype reach in a step. A dtype that the table lacks is
        as fast as fp32."""
        known = dtype if dtype in self.matrix_flops else "float32"
        best = self.best_matrix.get(known, _BEST_MATRIX)
        return self.matrix_flops[known] * best * MATRIX_SHARE

    @property
    def memory_rate(self) -> float:
        """Bytes/s that kernels reach."""
        return self.memory_bandwidth * MEMORY_SHARE

    @property
    def nvlink_rate(self) -> float:
        """Bytes/s that collectives reach inside of a node."""
        return self.nvlink * NVLINK_SHARE

    @property
    def network_rate(self) -> float:
        """Bytes/s per GPU that collectives reach between nodes."""
        return self.network * NETWORK_SHARE


def _best(bf16: float, fp8: float | None = None) -> dict[str, float]:
    """The fastest product measured (stas00/ml-engineering, accelerator, mamf-finder)."""
    shares = {"bfloat16": bf16, "float16": bf16}
    return shares if fp8 is None else shares | {"float8_e4m3fn": fp8, "float8_e5m2": fp8}


_A100 = Gpu(
    name="a100-80gb",
    memory=81920 * MIB,
    capability=(8, 0),
    matrix_flops=PEAKS["a100"],
    best_matrix=_best(0.869),
    memory_bandwidth=2.039e12,
    nvlink=300e9,
    network=25e9,
    host_link=25e9,
)
_H100 = Gpu(
    name="h100",
    memory=81559 * MIB,
    capability=(9, 0),
    matrix_flops=PEAKS["h100"],
    best_matrix=_best(0.803, 0.709),
    memory_bandwidth=3.35e12,
    nvlink=450e9,
    network=50e9,
    host_link=55e9,
)

GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        dataclasses.replace(_A100, name="a100-40gb", memory=40960 * MIB, memory_bandwidth=1.555e12),
        _A100,
        _H100,
        dataclasses.replace(
            _H100,
            name="h200",
            memory=143771 * MIB,
            matrix_flops=PEAKS["h200"],
            best_matrix=_best(0.803, 0.734),
            memory_bandwidth=4.8e12,
        ),
        Gpu(
            name="b200",
            memory=183359 * MIB,
            capability=(10, 0),
            matrix_flops=PEAKS["b200"],
            best_matrix=_best(0.776, 0.763),
            memory_bandwidth=8e12,
            nvlink=900e9,
            network=50e9,
            host_link=55e9,
        ),
        Gpu(
            name="l40s",
            memory=46068 * MIB,
            capability=(8, 9),
            matrix_flops=PEAKS["l40s"],
            best_matrix={},
            memory_bandwidth=0.864e12,
            nvlink=32e9,
            network=12.5e9,
            host_link=25e9,
        ),
    )
}
"""The GPUs that need no rates from the user, by name."""


@dataclass(frozen=True)
class Rates:
    """Rates of the user's own; None: the table's."""

    gpu_memory_gib: float | None = None
    """Memory of a GPU in GiB."""
    matrix_tflops: float | None = None
    """Peak of dense bf16 matrix products, TFLOP/s; fp8 is taken to be twice as fast."""
    memory_gb_s: float | None = None
    """Memory bandwidth in GB/s."""
    nvlink_gb_s: float | None = None
    """One direction of the links inside of a node, GB/s per GPU."""
    network_gb_s: float | None = None
    """One direction of the network between nodes, GB/s per GPU."""


def find_gpu(name: str, rates: Rates) -> Gpu:
    """A GPU of the table, with the user's rates instead of the table's.

    Args:
        name: Of the table; or any other, if all rates are given.
        rates: The user's.

    Raises:
        SettingError: The table has no such GPU and a rate is missing, or a rate is not above 0.
    """
    for field, value in vars(rates).items():
        if value is not None and value <= 0:
            raise SettingError(f"--{field}", value, "nothing is that slow or small", "give above 0")
    known = GPUS.get(name.lower())
    missing = [f"--{field}" for field, value in vars(rates).items() if value is None]
    if known is None and missing:
        raise SettingError(
            "--gpu",
            name,
            f"its rates are not known; known GPUs are {', '.join(GPUS)}",
            f"give one of them, or {', '.join(missing)}",
        )
    return _with_rates(known or dataclasses.replace(_H100, name=name, best_matrix={}), rates)


def _with_rates(gpu: Gpu, rates: Rates) -> Gpu:
    def given(rate: float | None, known: float, unit: float) -> float:
        return known if rate is None else rate * unit

    matrix_flops = gpu.matrix_flops
    if rates.matrix_tflops is not None:
        fast = matrix_peaks(rates.matrix_tflops, 0, 0, 2 * rates.matrix_tflops)
        matrix_flops = fast | {name: matrix_flops[name] for name in ("float32", "float64")}
    return dataclasses.replace(
        gpu,
        matrix_flops=matrix_flops,
        memory=int(given(rates.gpu_memory_gib, gpu.memory, 2**30)),
        memory_bandwidth=given(rates.memory_gb_s, gpu.memory_bandwidth, 1e9),
        nvlink=given(rates.nvlink_gb_s, gpu.nvlink, 1e9),
        network=given(rates.network_gb_s, gpu.network, 1e9),
    )
