"""Token files cut into sequences of one length, in a new order each epoch.

The order within an epoch is that of megatron-core's `GPTDataset`: documents are shuffled, laid
behind each other and cut into sequences, and the sequences are shuffled. Each epoch is a dataset of
its own, so that the order depends on neither the number of steps nor the layout of the ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

from megatron_resrl.corpus.dataset import bin_path, idx_path
from megatron_resrl.corpus.index_file import read_index
from megatron_resrl.errors import InputError
from megatron_resrl.platform.distributed import run_on_every_rank, run_on_rank_zero

_KEPT_EPOCHS = 2
"""A batch may hold the end of one epoch and the beginning of the next."""
_WHOLE = 4 << 20
"""Files up to so many bytes are read whole for a digest."""
_BLOCK, _BLOCKS = 4096, 1024


@dataclass(frozen=True)
class Cut:
    """Which documents of a file are meant, and how they are cut into sequences."""

    sequence_length: int
    """Tokens that a sequence feeds to the model; it has one token more, the last target."""
    seed: int
    """Of the order."""
    first: int = 0
    """The first document; a document is what the index calls a sequence."""
    last: int | None = None
    """Behind the last document; None: all from `first` on."""


def documents_to_train_on(documents: int, validation_share: float) -> int:
    """How many documents of a file are trained on; the others, its last, are for validation.

    megatron-core rounds alike where it splits a dataset.
    """
    return round((1.0 - validation_share) * documents)


def num_documents(prefix: str) -> int:
    """Documents of a dataset: what its index calls sequences."""
    return len(read_index(idx_path(prefix)).lengths)


def num_sequences(lengths: numpy.ndarray, sequence_length: int) -> int:
    """Whole sequences that documents of these lengths give; their ends overlap by one token."""
    tokens = int(lengths.sum(dtype=numpy.int64))
    return max(0, tokens - 1) // sequence_length


def content_digest(prefix: str) -> str:
    """Digest of both files of a dataset, of large ones their size and some of their bytes.

    Returns:
        16 hexadecimal digits.

    Raises:
        InputError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in (idx_path(prefix), bin_path(prefix)):
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(f"{size}\n".encode())
                if size <= _WHOLE:
                    digest.update(file.read())
                    continue
                for number in range(_BLOCKS):
                    file.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                    digest.update(file.read(_BLOCK))
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror})") from error
    return digest.hexdigest()[:16]


def cache_folder(prefix: str, cache_dir: str | None) -> Path:
    """Folder for the orders of a dataset: `data.cache_dir`, or `cache` beside the dataset."""
    return Path(prefix).parent / "cache" if cache_dir is None else Path(cache_dir)


class SequenceFile:
    """The sequences of one dataset, epoch after epoch.

    Args:
        prefix: Path of the .bin and .idx files without these endings; both have been checked.
        cut: Which documents, and how they are cut.
        cache: Folder for the orders; created if absent.
    """

    def __init__(self, prefix: str, cut: Cut, cache: Path) -> None:
        self.prefix = prefix
        self._cut = cut
        self._cache = cache
        self._tokens = IndexedDataset(prefix, mmap=True)
        lengths = self._tokens.sequence_lengths
        last = len(lengths) if cut.last is None else cut.last
        self._documents = numpy.arange(cut.first, last, dtype=numpy.int32)
        self.digest = content_digest(prefix)
        """Of the dataset's files."""
        self._orders: dict[int, GPTDataset] = {}
        self.tokens = int(lengths[cut.first : last].sum(dtype=numpy.int64))
        """Of the documents."""
        self.sequences = num_sequences(lengths[cut.first : last], cut.sequence_length)
        """Of one epoch."""

    def prepare(self, epoch: int) -> None:
        """Makes the order of an epoch: rank 0 builds it, all ranks read it. Collective.

        Raises:
            InputError: On all ranks: the folder cannot be written to, or a host does not see it.
        """
        if epoch in self._orders:
            return
        folder = self._folder(epoch)
        run_on_rank_zero(lambda: self._build(epoch, folder))
        self._orders[epoch] = run_on_every_rank(lambda: self._open(epoch, folder))
        for old in sorted(self._orders)[:-_KEPT_EPOCHS]:
            del self._orders[old]

    def read(self, epoch: int, number: int) -> list[numpy.ndarray]:
        """The tokens of a sequence, [sequence_length + 1] in all, in one piece per document.

        Args:
            epoch: One that is prepared.
            number: From 0, in the epoch's order.
        """
        order = self._orders[epoch]
        row = int(order.shuffle_index[number])
        (first, start), (last, end) = order.sample_index[row : row + 2].tolist()
        pieces = []
        for place in range(first, last + 1):
            offset = start if place == first else 0
            # `end` is the last token's place in its document.
            length = None if place < last else end + 1 - offset
            document = int(order.document_index[place])
            pieces.append(self._tokens.get(document, offset=offset, length=length))
        return [piece for piece in pieces if len(piece)]

    def _folder(self, epoch: int) -> Path:
        """Another one wherever the order would be another."""
        cut = self._cut
        last = cut.first + len(self._documents)
        key = [self.digest, cut.sequence_length, cut.seed, cut.first, last, epoch]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        return self._cache / f"{Path(self.prefix).name}-{digest}"

    def _build(self, epoch: int, folder: Path) -> None:
        """Writes an order at once, so that it is never seen in part."""
        if folder.is_dir():
            return
        incomplete = folder.with_name(f"{folder.name}.incomplete-{os.getpid()}")
        try:
            self._dataset(epoch, incomplete)
            os.rename(incomplete, folder)
        except OSError as error:
            if folder.is_dir():  # Another run has made it meanwhile.
                return
            raise InputError(
                f"data.cache_dir: {self._cache} cannot be written to ({error.strerror}); set it to "
                "a folder that this process may write to and all hosts share"
            ) from error
        finally:
            shutil.rmtree(incomplete, ignore_errors=True)

    def _open(self, epoch: int, folder: Path) -> GPTDataset:
        if not folder.is_dir():
            raise InputError(
                f"data.cache_dir: {folder}, which rank 0 has made, is not on this host; set it to "
                "a folder that all hosts share"
            )
        try:
            return self._dataset(epoch, folder)
        # numpy takes what is no array for a pickle.
        except (OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(f"{folder} cannot be read ({error}); delete it") from error

    def _dataset(self, epoch: int, folder: Path) -> GPTDataset:
        """megatron-core's dataset of one epoch; reads `folder`, or fills it on rank 0."""
        seed = numpy.random.SeedSequence([self._cut.seed, epoch]).generate_state(1)
        config = GPTDatasetConfig(
            random_seed=int(seed[0]),
            sequence_length=self._cut.sequence_length,
            path_to_cache=str(folder),
            tokenizer=_NO_TOKENIZER,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        name = Path(self.prefix).name
        return GPTDataset(self._tokens, name, self._documents, None, Split.train, config)


class _NoTokenizer:
    """`GPTDataset` asks for a tokenizer; orders need none."""

    vocab_size = None
    unique_identifiers: dict[str, Any] = {}  # noqa: RUF012 - megatron-core's name, never changed


_NO_TOKENIZER: Any = _NoTokenizer()


def by_tokens(files: Sequence[SequenceFile]) -> list[float]:
    """Weights with which each file has the share of its tokens."""
    total = sum(file.tokens for file in files)
    return [file.tokens / total for file in files]
