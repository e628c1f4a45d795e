"""Sequences of several token files in the order of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from megatron.core.datasets import helpers

from megatron_resrl.corpus.sequences import SequenceFile

PERIOD = 1 << 20
"""Sequences after which the pattern of files repeats."""


class Blend:
    """Which file each sequence is from: megatron-core's choice of the file that is furthest behind.

    As in its `BlendedDataset`, whose order is the same over the first `PERIOD` sequences, but of no
    given size: the choice of `PERIOD` sequences is repeated for ever.

    Args:
        weights: Of the files, above 0; their sum is 1.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._file = numpy.zeros(PERIOD, dtype=numpy.int16)
        self._position = numpy.zeros(PERIOD, dtype=numpy.int64)
        shares = numpy.array(weights, dtype=numpy.float64)
        helpers.build_blending_indices(
            self._file, self._position, shares, len(shares), PERIOD, False
        )
        self._per_period = numpy.bincount(self._file, minlength=len(shares))

    def place(self, number: int) -> tuple[int, int]:
        """The file of a sequence, and how many sequences of that file come before it."""
        period, within = divmod(number, PERIOD)
        file = int(self._file[within])
        return file, int(period * self._per_period[file] + self._position[within])


class BlendedSequences:
    """Sequences of several files, numbered from 0 without end.

    Args:
        files: At least one, each with at least one sequence.
        weights: Share of the sequences that each file has.
    """

    def __init__(self, files: Sequence[SequenceFile], weights: Sequence[float]) -> None:
        self._files = list(files)
        self._blend = Blend(weights)

    def epochs(self, number: int) -> float:
        """How often all files have been read before a sequence, on average."""
        return number / sum(file.sequences for file in self._files)

    def prepare(self, numbers: range) -> None:
        """Makes these sequences, of all replicas, ready to be read. Collective.

        Raises:
            InputError: See `SequenceFile.prepare`.
        """
        for file, epoch in sorted({self._place(number)[:2] for number in numbers}):
            self._files[file].prepare(epoch)

    def read(self, number: int) -> list[numpy.ndarray]:
        """The tokens of a sequence that is prepared, see `SequenceFile.read`."""
        file, epoch, within = self._place(number)
        return self._files[file].read(epoch, within)

    def _place(self, number: int) -> tuple[int, int, int]:
        file, position = self._blend.place(number)
        return file, *divmod(position, self._files[file].sequences)
