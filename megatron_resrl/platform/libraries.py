"""Environment variables that CUDA's libraries read once, when they start."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import torch

from megatron_resrl.config.schema import PrecisionConfig
from megatron_resrl.config.schema_rollout import RolloutConfig

logger = logging.getLogger(__name__)

_ON_CUDA = {
    # Kernels start in the order in which they are issued, which megatron-core's overlap of
    # tensor-parallel communication and computation relies on.
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    # Tensors in flight are kept alive by their references; recording their streams as well delays
    # the reuse of their memory.
    "TORCH_NCCL_AVOID_RECORD_STREAMS": "1",
    # The last collectives of a rank, written to a file when one of them times out.
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Name of the allocator's variable since torch 2.9, and before; a user may have set either."""

_DETERMINISTIC = {
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
    "NCCL_ALGO": "Ring",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def library_variables(
    precision: PrecisionConfig,
    rollout: RolloutConfig,
    environment: Mapping[str, str],
    *,
    cuda: bool,
) -> dict[str, str]:
    """Variables to set before the first CUDA call; what the user has set stays.

    Args:
        precision: Whether the run is to be deterministic.
        rollout: Where the engine runs.
        environment: Of the process.
        cuda: Whether this machine has CUDA devices.

    Returns:
        On CUDA: one hardware queue (`CUDA_DEVICE_MAX_CONNECTIONS`), no recorded streams
        (`TORCH_NCCL_AVOID_RECORD_STREAMS`), a record of the last collectives for when one times out
        (`TORCH_NCCL_TRACE_BUFFER_SIZE`, `TORCH_NCCL_DUMP_ON_TIMEOUT`), and memory segments that
        grow instead of fragments. Segments do not grow where weights go to servers on the same
        GPUs: processes exchange whole segments, and growing segments cannot always be exchanged.
        With `precision.deterministic`, on any machine, the variables with which NCCL, cuBLAS and
        Transformer Engine compute the same bits each time; they replace the user's.
    """
    chosen: dict[str, str] = {}
    if cuda:
        chosen |= {name: value for name, value in _ON_CUDA.items() if name not in environment}
        shared = rollout.engine == "vllm" and rollout.placement == "colocated"
        if not shared and not any(name in environment for name in _ALLOCATOR):
            chosen["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    if precision.deterministic:
        chosen |= _DETERMINISTIC
    return chosen


def prepare_libraries(precision: PrecisionConfig, rollout: RolloutConfig) -> None:
    """Sets `library_variables` for this process and its children, and logs them.

    With `precision.deterministic`, torch refuses operations whose results differ between runs.
    """
    chosen = library_variables(precision, rollout, os.environ, cuda=torch.cuda.is_available())
    os.environ |= chosen
    if chosen:
        settings = " ".join(f"{name}={value}" for name, value in chosen.items())
        logger.info("environment variables set for the libraries: %s", settings)
    if precision.deterministic:
        torch.use_deterministic_algorithms(True)
