"""Report of a conversion, as data and as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from megatron_resrl.conversion.megatron_layout import Parameter
from megatron_resrl.platform.dtypes import dtype_name
from megatron_resrl.platform.memory_peaks import largest_resident_set

KEPT = "each as it was"
LISTED = 5
"""Largest number of names per list in the text."""


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion read and wrote."""

    source: str
    target: str
    tensors: int
    """Number of Hugging Face tensors."""
    bytes: int
    """Size of the tensors as written."""
    dtypes: dict[str, int]
    """Dtype -> number of tensors read."""
    written_dtype: str
    """Dtype of the written tensors; `KEPT`: each tensor has its own dtype."""
    unexpected: tuple[str, ...]
    """Tensors of the source that are not part of the model and were left out."""
    reshaped: dict[str, tuple[str, ...]]
    """Kind of change -> names of Megatron parameters that differ from a Hugging Face tensor."""
    seconds: float
    peak_memory: int
    """Largest resident memory of this process so far, bytes."""
    missing: tuple[str, ...] = ()
    """Always empty: a source that lacks a tensor is refused."""

    @property
    def gigabytes_per_second(self) -> float:
        """10^9 bytes of tensors per second."""
        return self.bytes / self.seconds / 1e9

    def __str__(self) -> str:
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())
        lines = [
            f"{self.source} -> {self.target}",
            f"tensors      {self.tensors}, {self.bytes / 1e9:.3f} GB",
            f"dtypes       {dtypes} -> {self.written_dtype}",
            f"missing      {_listed(self.missing)}",
            f"unexpected   {_listed(self.unexpected)}",
            *(f"reshaped     {len(names)} {how}" for how, names in self.reshaped.items()),
            f"time         {self.seconds:.1f} s, {self.gigabytes_per_second:.2f} GB/s",
            f"peak memory  {self.peak_memory / 1e9:.2f} GB",
        ]
        return "\n".join(lines)


@dataclass
class ConversionStats:
    """Counts what a conversion reads and writes, tensor by tensor."""

    tensors: int = 0
    bytes: int = 0
    dtypes: Counter[str] = field(default_factory=Counter)
    reshaped: dict[str, list[str]] = field(default_factory=dict)

    def add(
        self,
        parameter: Parameter,
        read: Sequence[torch.dtype],
        written: Sequence[torch.dtype],
    ) -> None:
        """Counts one Megatron parameter.

        Args:
            parameter: Its description.
            read: Types of the tensors it was read from, one per Hugging Face tensor.
            written: Likewise.
        """
        self.tensors += len(parameter.hf_shapes)
        sizes = map(math.prod, parameter.hf_shapes.values())
        self.bytes += sum(size * t.itemsize for size, t in zip(sizes, written, strict=True))
        self.dtypes.update(map(dtype_name, read))
        how = _reshaping(parameter)
        if how is not None:
            self.reshaped.setdefault(how, []).append(parameter.name)

    def report(
        self,
        *,
        source: Path,
        target: Path,
        dtype: str,
        unexpected: tuple[str, ...],
        seconds: float,
    ) -> ConversionReport:
        """The finished report; see `ConversionReport`."""
        return ConversionReport(
            source=str(source),
            target=str(target),
            tensors=self.tensors,
            bytes=self.bytes,
            dtypes=dict(self.dtypes),
            written_dtype=dtype,
            unexpected=unexpected,
            reshaped={how: tuple(names) for how, names in self.reshaped.items()},
            seconds=seconds,
            peak_memory=largest_resident_set(),
        )


def _reshaping(parameter: Parameter) -> str | None:
    """How a Megatron parameter differs from its Hugging Face tensors; None: not at all."""
    if len(parameter.hf_shapes) == 3:
        return "query, key and value merged"
    if len(parameter.hf_shapes) == 2:
        return "gate and up merged"
    (shape,) = parameter.hf_shapes.values()
    if parameter.is_vocabulary and parameter.shape != shape:
        return f"vocabulary of {shape[0]} padded to {parameter.shape[0]}"
    return None


def _listed(names: tuple[str, ...]) -> str:
    if not names:
        return "none"
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{len(names)}: {', '.join(names[:LISTED])}{more}"
