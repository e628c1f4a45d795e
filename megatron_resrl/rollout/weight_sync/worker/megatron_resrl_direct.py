"""New weights put straight into a model on a CPU; runs inside vLLM's workers.

vLLM's loader gives every layer new memory, copies its tensors together, packs them for the kernel
and throws the memory away. The tensors of a layer lie side by side in the bytes of a bucket: here
they are packed from there. This is done for layers whose kernels are known, and only once samples
have shown that the first tensors are in the model where they would have been put.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron_resrl_checksums import fused_name
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

Tensors = Iterable[tuple[str, torch.Tensor]]

_SAMPLED = 16
"""Columns of each matrix that are compared."""


@dataclass
class _Group:
    """The tensors that one parameter is made of."""

    names: list[str] = field(default_factory=list)
    """In the order of the parameter's rows."""
    samples: dict[str, torch.Tensor] = field(default_factory=dict)
    """Some columns of each of the first tensors."""
    arrived: dict[str, torch.Tensor] = field(default_factory=dict)
    """Tensors of the present update."""


class DirectWeights:
    """Puts tensors into the parameters of a model.

    Attributes:
        agrees: Whether tensors may be put: vLLM's loader had put the first ones to the same places.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """
        Args:
            model: As vLLM has built it.
        """
        packed = getattr(model, "packed_modules_mapping", {})
        self._packed = {whole: list(parts) for whole, parts in packed.items()}
        self._model = model
        self._groups: dict[str, _Group] = {}
        self._has_output = any(_is_output(module) for module in model.modules())
        self._may_agree = all(p.device.type == "cpu" for p in model.parameters())
        self.agrees = False

    def begin(self) -> None:
        """Forgets what an update that was cut off has left."""
        if not self.agrees:
            self._groups.clear()
        for group in self._groups.values():
            group.arrived.clear()

    def note(self, tensors: Tensors) -> None:
        """Keeps samples of tensors that vLLM's loader gets."""
        if not self._may_agree:
            return
        for name, tensor in tensors:
            group = self._groups.setdefault(fused_name(name, self._packed), _Group())
            group.names.append(name)
            group.names.sort(key=self._row_order)
            group.samples[name] = _sample(tensor).clone()

    def compare(self) -> None:
        """Sets `agrees`, after an update by vLLM's loader that was not cut off."""
        needed = {fused_name(name, self._packed) for name, _ in self._model.named_parameters()}
        if self._may_agree and needed <= self._groups.keys():
            self.agrees = all(self._is_in_place(*each) for each in self._groups.items())
            self._may_agree = self.agrees
            for group in self._groups.values():
                group.samples.clear()

    @torch.no_grad()
    def put(self, tensors: Tensors) -> None:
        """Takes tensors, and puts those of every complete group into the model.

        Args:
            tensors: Stay as they are until the update is over.
        """
        for name, tensor in tensors:
            key = fused_name(name, self._packed)
            group = self._groups[key]
            group.arrived[name] = tensor
            if len(group.arrived) == len(group.names):
                self._place(key, _stacked([group.arrived[each] for each in group.names]))
                group.arrived.clear()

    def finish(self, dtype: torch.dtype) -> None:
        """What vLLM does at the end of an update with attention, after all other layers.

        Args:
            dtype: Of the model.
        """
        for module in self._model.modules():
            process: Any = getattr(module, "process_weights_after_loading", None)
            if isinstance(module, AttentionLayerBase) and process is not None:
                process(dtype)

    def _row_order(self, name: str) -> int:
        for segment in name.split("."):
            for parts in self._packed.values():
                if segment in parts:
                    return parts.index(segment)
        return 0

    def _is_in_place(self, key: str, group: _Group) -> bool:
        path, _, name = key.rpartition(".")
        modules = dict(self._model.named_modules())
        module = modules.get(path)
        parameter = getattr(module, name, None)
        method = type(getattr(module, "quant_method", None))
        is_known = method in (type(None), UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
        if module is None or not isinstance(parameter, torch.nn.Parameter) or not is_known:
            return False
        expected = torch.cat([group.samples[each] for each in group.names])
        found = []
        if self._is_packed(module, name):
            found.append(_packed_sample(module, expected.dtype))
        if self._is_kept(module, name):
            found.append(_sample(parameter))
        if isinstance(module, VocabParallelEmbedding):
            # vLLM pads the vocabulary.
            found = [sample[: len(expected)] for sample in found]
        return all(torch.equal(sample.to(expected), expected) for sample in found)

    def _place(self, key: str, whole: torch.Tensor) -> None:
        path, _, name = key.rpartition(".")
        module: Any = self._model.get_submodule(path)
        parameter = getattr(module, name)
        if self._is_kept(module, name):
            parameter[: len(whole)].copy_(whole)
            if self._is_packed(module, name):
                module.quant_method.process_weights_after_loading(module)
            return
        module.weight = torch.nn.Parameter(whole, requires_grad=False)
        module.quant_method.process_weights_after_loading(module)
        # Empty, or the matrix where the kernel has no copy of its own.
        parameter.data.copy_(module.weight)
        module.weight = parameter

    def _is_packed(self, module: torch.nn.Module, name: str) -> bool:
        """Whether a kernel multiplies by a copy of a parameter."""
        if name != "weight" or not hasattr(module, "cpu_linear"):
            return False
        # vLLM packs embeddings, too, and multiplies by those of an output matrix if there is one.
        is_input = isinstance(module, VocabParallelEmbedding) and not _is_output(module)
        return not (is_input and self._has_output)

    def _is_kept(self, module: torch.nn.Module, name: str) -> bool:
        """Whether a parameter is used itself; embeddings are looked up in it."""
        return not self._is_packed(module, name) or isinstance(module, VocabParallelEmbedding)


def _is_output(module: torch.nn.Module) -> bool:
    return isinstance(module, ParallelLMHead)


def _columns(size: int) -> torch.Tensor:
    """Numbers of some columns, all over a matrix."""
    return torch.linspace(0, size - 1, min(size, _SAMPLED)).long()


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Some columns of a matrix; all of a vector."""
    return tensor if tensor.dim() == 1 else tensor[:, _columns(tensor.shape[1])]


def _packed_sample(module: Any, dtype: torch.dtype) -> torch.Tensor:
    """Some columns [out, columns] of the matrix that a kernel multiplies by."""
    if isinstance(module, VocabParallelEmbedding):
        size = module.embedding_dim
    else:
        size = getattr(module, "input_size_per_partition", module.input_size)
    columns = _columns(size)
    rows = torch.zeros(len(columns), size, dtype=dtype)
    rows[torch.arange(len(columns)), columns] = 1
    # A product with one 1 and zeros is exact.
    return module.cpu_linear(rows, module.weight, None).T


def _stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Tensors one below the other: a view where they lie side by side in memory."""
    first = tensors[0]
    end = first.data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != end or not tensor.is_contiguous():
            return torch.cat(tensors)
        end += tensor.nbytes
    rows = sum(len(tensor) for tensor in tensors)
    return first.as_strided((rows, *first.shape[1:]), first.stride())
