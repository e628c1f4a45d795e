"""Token files as Megatron-LM writes them: megatron-core's builder in a plain loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder


def build(
    prefix: Path, documents: Iterable[Sequence[int]], vocab_size: int, *, split: int = 1
) -> Path:
    """Writes documents, each in `split` sequences of about the same length; returns the prefix."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
    for document in documents:
        lengths = [len(part) for part in numpy.array_split(numpy.array(document), split)]
        builder.add_document(document, lengths)
    builder.finalize(f"{prefix}.idx")
    return prefix
