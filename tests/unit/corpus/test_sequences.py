"""Token files as sequences: the order of megatron-core, whatever is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import tiny_corpus
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

from megatron_resrl.config.schema import ParallelConfig
from megatron_resrl.corpus.blend import PERIOD, Blend, BlendedSequences
from megatron_resrl.corpus.sequences import (
    Cut,
    SequenceFile,
    by_tokens,
    documents_to_train_on,
)
from megatron_resrl.errors import InputError
from megatron_resrl.platform.distributed import process_groups

LENGTH = 16


class _Tokenizer:
    vocab_size = None
    eod = -1
    unique_identifiers = ()


@pytest.fixture(scope="module", autouse=True)
def _one_rank() -> Iterator[None]:
    with process_groups(ParallelConfig(), 0):
        yield


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tiny_corpus.write_tokens(tmp_path)


def _file(prefix: Path, epochs: int = 1, **cut: int) -> SequenceFile:
    opened = SequenceFile(
        str(prefix), Cut(**{"sequence_length": LENGTH, "seed": 3} | cut), _cache(prefix)
    )
    for epoch in range(epochs):
        opened.prepare(epoch)
    return opened


def _cache(prefix: Path) -> Path:
    return prefix.parent / "cache"


def _all(file: SequenceFile, epoch: int = 0) -> list[list[int]]:
    return [numpy.concatenate(file.read(epoch, n)).tolist() for n in range(file.sequences)]


def _megatron(prefix: Path, seed: int, num_samples: int | None = None) -> GPTDataset:
    tokens = IndexedDataset(str(prefix))
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=LENGTH,
        tokenizer=_Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    documents = numpy.arange(len(tokens.sequence_lengths), dtype=numpy.int32)
    return GPTDataset(tokens, None, documents, num_samples, Split.train, config)


def test_sequences_are_those_of_gpt_dataset(prefix):
    file = _file(prefix, epochs=2)
    for epoch in (0, 1):
        seed = int(numpy.random.SeedSequence([3, epoch]).generate_state(1)[0])
        theirs = _megatron(prefix, seed)
        assert len(theirs) == file.sequences > 30
        for number in range(file.sequences):
            row = theirs[number]
            expected = [*row["tokens"].tolist(), int(row["labels"][-1])]
            assert numpy.concatenate(file.read(epoch, number)).tolist() == expected


def test_sequences_of_an_epoch_feed_each_token_once(prefix):
    file = _file(prefix, epochs=2)
    tokens = Counter(token for document in tiny_corpus.documents() for token in document)
    fed = Counter(token for sequence in _all(file) for token in sequence[:-1])
    assert fed <= tokens
    # The rest is too short for a sequence.
    assert (tokens - fed).total() == file.tokens - file.sequences * LENGTH <= LENGTH
    assert sorted(_all(file, 1)) != sorted(_all(file, 0))


def test_sequences_come_in_pieces_of_documents(prefix):
    file = _file(prefix)
    texts = [" ".join(map(str, document)) for document in tiny_corpus.documents()]
    several = 0
    for number in range(file.sequences):
        pieces = [" ".join(map(str, piece.tolist())) for piece in file.read(0, number)]
        several += len(pieces) > 1
        assert all(any(piece in text for text in texts) for piece in pieces)
        # All but the first begin a document, all but the last end one.
        assert all(any(text.startswith(piece) for text in texts) for piece in pieces[1:])
        assert all(any(text.endswith(piece) for text in texts) for piece in pieces[:-1])
    assert several > 5


def test_sequences_of_training_and_validation_are_apart(prefix):
    documents = tiny_corpus.documents()
    cut = documents_to_train_on(len(documents), 0.25)
    assert cut == 30
    training, validation = _file(prefix, last=cut), _file(prefix, first=cut)
    assert training.tokens == sum(map(len, documents[:cut]))
    assert training.tokens + validation.tokens == sum(map(len, documents))
    last = [" ".join(map(str, document)) for document in documents[cut:]]
    for number in range(validation.sequences):
        for piece in validation.read(0, number):
            assert any(" ".join(map(str, piece.tolist())) in text for text in last)


def test_sequence_order_is_made_once_and_follows_the_content(prefix):
    first = _all(_file(prefix))
    (folder,) = _cache(prefix).iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert _all(_file(prefix)) == first
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert _all(_file(prefix, seed=4)) != first
    tiny_corpus.write_tokens(prefix.parent, seed=1)
    _file(prefix)
    assert len(list(_cache(prefix).iterdir())) == 3


def test_sequence_order_names_a_folder_without_use(prefix):
    _cache(prefix).write_text("a file")
    with pytest.raises(InputError, match=r"data\.cache_dir: .*cache cannot be written to"):
        _file(prefix)
    _cache(prefix).unlink()
    _file(prefix)
    (folder,) = _cache(prefix).iterdir()
    next(folder.glob("*sample_index.npy")).write_bytes(b"cut off")
    with pytest.raises(InputError, match=f"{folder} cannot be read .*; delete it"):
        _file(prefix)


def test_blend_is_that_of_blended_dataset(prefix):
    other = tiny_corpus.write_tokens(prefix.parent, "other", seed=1)
    theirs = BlendedDataset(
        [_megatron(each, 1, num_samples=500) for each in (prefix, other)],
        [0.7, 0.3],
        500,
        _megatron(prefix, 1).config,
    )
    expected = list(
        zip(theirs.dataset_index.tolist(), theirs.dataset_sample_index.tolist(), strict=True)
    )
    blend = Blend([0.7, 0.3])
    assert [blend.place(number) for number in range(500)] == expected
    # After a period each file goes on where it was.
    reached = [sum(blend.place(n)[0] == file for n in range(0, PERIOD, 4099)) for file in (0, 1)]
    assert reached[0] / sum(reached) == pytest.approx(0.7, abs=0.05)
    last = dict(map(blend.place, range(PERIOD - 20, PERIOD)))
    following = dict(reversed([blend.place(n) for n in range(PERIOD, PERIOD + 20)]))
    assert following == {file: position + 1 for file, position in last.items()}


def test_blended_sequences_do_not_depend_on_the_batches(prefix):
    other = tiny_corpus.write_tokens(prefix.parent, "other", seed=1, count=9)

    def read(sizes: list[int]) -> list[list[int]]:
        files = [_file(prefix, epochs=0), _file(other, epochs=0)]
        blend, found, start = BlendedSequences(files, by_tokens(files)), [], 0
        for size in sizes:
            numbers = range(start, start + size)
            blend.prepare(numbers)
            found += [numpy.concatenate(blend.read(number)).tolist() for number in numbers]
            start += size
        return found

    # Several epochs of both files.
    assert read([4] * 60) == read([80] * 3)
