"""Runs inside vLLM's workers: a back end of its weight-transfer API, and checksums of its weights.

`--worker-extension-cls megatron_resrl_worker.WeightExtension` imports this module, which registers
the back end with vLLM's factory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from megatron_resrl_buckets import KeptBuckets
from megatron_resrl_checksums import fused_name, tensor_sum, wrapped
from megatron_resrl_direct import DirectWeights
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.logger import init_logger
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

logger = init_logger("vllm.megatron_resrl")

BACKEND = "megatron_resrl_file"
_PROBED_ROWS = 256
"""Rows of the identity matrix that are multiplied at once."""


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """One bucket of weights."""

    path: str
    """A safetensors file: the bytes of a bucket, or what has changed in them; see `KeptBuckets`."""


class FileTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Loads weights from safetensors files that the trainer writes, e.g. into shared memory."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo
    supports_draft_weight_update = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Of vLLM's own form."""
        super().__init__(*arguments, **named)
        self.kept = KeptBuckets()
        self._direct = DirectWeights(self.model)
        self._loaded: set[str] | None = None
        """Numbers of the buckets of the present update; None: there is none."""

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to open."""

    def start_weight_update(self) -> None:
        """Prepares the layers for weights in the format of a checkpoint."""
        self._loaded = set()
        self._direct.begin()
        if not self._direct.agrees:
            initialize_layerwise_reload(self.model)

    def identities(self) -> dict[str, str]:
        """Number of each kept bucket -> identity of its bytes; none in the middle of an update."""
        return self.kept.identities() if self._loaded is None else {}

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Loads a bucket, whose bytes are kept if that succeeds; the file may then be deleted.

        Raises:
            ValueError: The bytes are not those that the trainer has.
        """
        assert self._loaded is not None
        try:
            with safe_open(update_info.path, framework="pt") as file:
                notes = file.metadata()
                self._load(list(self.kept.take(notes, file.get_tensor).tensors()))
        except BaseException:
            self.kept.clear()
            raise
        self._loaded.add(notes["number"])

    def _load(self, tensors: list[tuple[str, torch.Tensor]]) -> None:
        if self._direct.agrees:
            self._direct.put(tensors)
            return
        self._direct.note(tensors)
        with disable_mtp_completeness_check():
            self.model.load_weights(tensors)

    def finish_weight_update(self) -> None:
        """Finishes layers whose processing had to wait for all buckets."""
        if self._loaded != self.kept.identities().keys():
            self.kept.clear()  # The update was cut off: buckets of a layer may differ in age.
        self._loaded = None
        if self._direct.agrees:
            self._direct.finish(self.model_config.dtype)
            return
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            _pack_experts(self.model)
        self._direct.compare()
        if self._direct.agrees:
            logger.info("New weights are put straight into the model from now on.")

    def shutdown(self) -> None:
        """Gives up the kept bytes."""
        self.kept.clear()


def _pack_experts(model: torch.nn.Module) -> None:
    """Lays the experts of every layer out as vLLM's CPU kernel reads them.

    vLLM 0.32 does it when it builds a kernel and leaves it out when a built kernel gets new
    weights: its own `reload_weights` gives wrong mixtures of experts on CPU.
    """
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is not None and "w13_weight" in dict(module.named_parameters(recurse=False)):
            kernel.fused_experts.process_weights_after_loading(module)


WeightTransferEngineFactory.register_engine(BACKEND, FileTransferEngine)


class WeightExtension:
    """Methods that `/collective_rpc` can call on a worker.

    Attributes:
        model_runner: Of vLLM's worker, which gets this class as a base.
        model_config: Of the same worker.
        weight_transfer_engine: Of the same worker.
    """

    model_runner: GPUModelRunner
    model_config: ModelConfig
    weight_transfer_engine: WeightTransferEngine

    def megatron_resrl_identities(self) -> dict[str, str]:
        """Number of each bucket of the last sync -> identity of its bytes; none if not kept."""
        engine = self.weight_transfer_engine
        return engine.identities() if isinstance(engine, FileTransferEngine) else {}

    def megatron_resrl_checksums(self) -> dict[str, Any]:
        """Sums over the weights that this worker computes with.

        Returns:
            `dtype` of the model, its `packed` modules, and `sums` by `fused_name`.
        """
        model = self.model_runner.get_model()
        packed = {
            whole: list(parts)
            for whole, parts in getattr(model, "packed_modules_mapping", {}).items()
        }
        sums: dict[str, int] = {}
        for name, tensor in _weights_in_use(model, self.model_config.dtype):
            key = fused_name(name, packed)
            sums[key] = wrapped(sums.get(key, 0) + tensor_sum(tensor))
        dtype = str(self.model_config.dtype).removeprefix("torch.")
        return {"dtype": dtype, "packed": packed, "sums": sums}


def _weights_in_use(
    model: torch.nn.Module, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter, or pieces of it, by name.

    On CPU vLLM packs matrices for its kernels and throws the parameter away (or, for an output
    matrix, keeps both): there the kernel's product with an identity matrix is what it holds.
    """
    for prefix, module in model.named_modules():
        # An embedding is looked up in its parameter; only an output matrix is multiplied.
        looked_up = isinstance(module, VocabParallelEmbedding)
        multiplied = hasattr(module, "cpu_linear") and (
            not looked_up or isinstance(module, ParallelLMHead)
        )
        for name, parameter in module.named_parameters(recurse=False):
            full_name = f"{prefix}.{name}"
            if name == "weight" and multiplied:
                for piece in _multiplied(module, dtype):
                    yield full_name, piece
            else:
                yield full_name, parameter


def _multiplied(module: torch.nn.Module, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The matrix [out, in] of a CPU kernel, some columns [columns, out] at a time."""
    if isinstance(module, ParallelLMHead):
        columns = module.embedding_dim
    else:
        columns = getattr(module, "input_size_per_partition", module.input_size)
    for first in range(0, columns, _PROBED_ROWS):
        count = min(_PROBED_ROWS, columns - first)
        rows = torch.zeros(count, columns, dtype=dtype)
        rows[torch.arange(count), torch.arange(first, first + count)] = 1
        # A product with one 1 and zeros is exact.
        yield module.cpu_linear(rows, module.weight, None)  # type: ignore[operator]  # vLLM's kernel
