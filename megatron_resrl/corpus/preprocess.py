"""Text to token files of megatron-core: in parallel, resumable, with the same bytes every time."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import tokenizers
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

from megatron_resrl.corpus.dataset import check_indexed_dataset
from megatron_resrl.corpus.encoding import (
    Counts,
    DocumentFormat,
    EncodedShard,
    Encoder,
    do_nothing,
    encode_in_worker,
    start_worker,
)
from megatron_resrl.corpus.manifest import Manifest, vocabulary_digest, vocabulary_size
from megatron_resrl.corpus.text_files import (
    Position,
    Shard,
    TextDocuments,
    read_shards,
    read_texts,
    text_files,
)
from megatron_resrl.corpus.unfinished import UnfinishedFiles
from megatron_resrl.data.tokenizer import read_tokenizer
from megatron_resrl.errors import InputError, RunError
from megatron_resrl.observe.progress import ByteProgress
from megatron_resrl.platform.disk import report_full_disk

_AHEAD = 2
"""Shards per process that are read ahead."""
_COMPARED = 8
"""Documents at the beginning of a file that are tokenized once more at the end."""


@dataclass(frozen=True)
class PreprocessReport:
    """What became of the text."""

    prefix: str
    """Path of the .bin and .idx files without these endings."""
    files: int
    counts: Counts
    dtype: str
    vocab_size: int
    resumed: int
    """Documents that an interrupted process had finished."""
    ids_read: int
    """Token ids that were read back and compared with the vocabulary."""
    compared: int
    """Documents that were tokenized again one by one, and were equal."""
    seconds: float
    text_bytes: int
    """Of this process alone."""

    @property
    def megabytes_per_second(self) -> float:
        """10^6 bytes of text per second."""
        return self.text_bytes / self.seconds / 1e6

    def __str__(self) -> str:
        counts = self.counts
        average = counts.text_bytes / max(counts.tokens, 1)
        lines = [
            f"{self.files} files -> {self.prefix}.bin, {self.prefix}.idx",
            f"documents    {counts.documents:,}",
            f"left out     {counts.empty:,} empty, {counts.unreadable:,} unreadable",
            f"tokens       {counts.tokens:,} ({self.dtype}, {average:.2f} bytes of text each)",
            f"checked      {self.ids_read:,} token ids read back, all below {self.vocab_size:,}; "
            f"{self.compared} documents tokenized again",
            f"time         {self.seconds:.1f} s, {self.megabytes_per_second:.1f} MB/s",
        ]
        if self.resumed:
            lines.insert(1, f"went on      after {self.resumed:,} documents of an earlier run")
        return "\n".join(lines)


def preprocess_data(  # noqa: PLR0913, one for each option of the command
    input: list[str],
    output_prefix: str,
    tokenizer: str,
    text_key: str = "text",
    text_documents: TextDocuments = "file",
    append_eod: bool = True,
    prepend_bos: bool = False,
    unreadable: str = "stop",
    workers: int | None = None,
    force: bool = False,
) -> PreprocessReport:
    """Writes text as token files that megatron-core's IndexedDataset reads.

    The result depends on the text, the tokenizer and the options alone, not on `workers` or
    interruptions. An interrupted command goes on where it was when it is given again.

    Args:
        input: Files, folders or patterns: .jsonl, .json (an object per line), .txt, each also
            with .gz or .zst, and .parquet.
        output_prefix: Writes <output_prefix>_<text_key>_document.bin, .idx and .json.
        tokenizer: Directory of a Hugging Face tokenizer.
        text_key: Column of the text in .jsonl and .parquet; a.b is field b of column a.
        text_documents: What is one document of a .txt file: file, line or blank_line (what stands
            between blank lines).
        append_eod: End each document with the tokenizer's eos_token.
        prepend_bos: Begin each document with the tokenizer's bos_token.
        unreadable: What to do about a document that cannot be read: stop or drop.
        workers: Processes that tokenize; default: one per core.
        force: Replace finished files, and unfinished work with other options.

    Raises:
        InputError: An option or a file cannot be used.
        RunError: A process died, or what was written is not what was meant.
    """
    began = time.monotonic()
    files = text_files(input)
    loaded = _tokenizer(tokenizer)
    form = _document_format(loaded, text_key, append_eod, prepend_bos, unreadable)
    vocab_size = vocabulary_size(loaded)
    dtype = numpy.dtype(DType.optimal_dtype(vocab_size))
    plan = _plan(files, loaded, form, text_documents, dtype)
    prefix = Path(f"{output_prefix}_{text_key}_document")
    with (
        UnfinishedFiles(prefix, plan, dtype, force=force) as unfinished,
        report_full_disk(prefix.parent, 0),
    ):
        earlier = unfinished.state.counts
        shards = read_shards(files, text_key, text_documents, unfinished.state.position)
        results = _encoded(shards, loaded, form, dtype, _worker_count(workers))
        _write(unfinished, results, files)
        counts = unfinished.state.counts
        if counts.documents == 0:
            raise InputError(f"--input holds no text: {counts.empty} documents, all of them empty")
        unfinished.write_index()
        ids_read = _check_content(unfinished.tokens_prefix, counts, vocab_size)
        starts = sorted({(0, 0), unfinished.state.newest_file})
        compared = sum(
            _compare(unfinished.tokens_prefix, files, start, Encoder(loaded), form, text_documents)
            for start in starts
        )
        unfinished.publish(
            Manifest(
                tokenizer=tokenizer,
                vocabulary_sha256=vocabulary_digest(loaded),
                vocab_size=vocab_size,
                bos_id=form.beginning[0] if form.beginning else None,
                eod_id=form.end[0] if form.end else None,
                dtype=dtype.name,
                text_key=text_key,
                text_documents=text_documents,
                documents=counts.documents,
                tokens=counts.tokens,
                empty_documents=counts.empty,
                unreadable_documents=counts.unreadable,
                text_bytes=counts.text_bytes,
                inputs=[{"path": str(file), "bytes": file.stat().st_size} for file in files],
            )
        )
    return PreprocessReport(
        prefix=str(prefix),
        files=len(files),
        counts=counts,
        dtype=dtype.name,
        vocab_size=vocab_size,
        resumed=earlier.documents,
        ids_read=ids_read,
        compared=compared,
        seconds=time.monotonic() - began,
        text_bytes=counts.text_bytes - earlier.text_bytes,
    )


def _tokenizer(path: str) -> Any:
    if not Path(path).is_dir():
        raise InputError(
            f"--tokenizer {path}: there is no such directory; give the one of a Hugging Face "
            "tokenizer, which tools/train_tokenizer.py makes"
        )
    return read_tokenizer("--tokenizer", path)


def _document_format(
    tokenizer: Any, text_key: str, append_eod: bool, prepend_bos: bool, unreadable: str
) -> DocumentFormat:
    if unreadable not in ("stop", "drop"):
        raise InputError(f"--unreadable is {unreadable!r}; it must be stop or drop")
    for wanted, name, option in (
        (append_eod, "eos_token", "--append_eod"),
        (prepend_bos, "bos_token", "--prepend_bos"),
    ):
        if wanted and getattr(tokenizer, f"{name}_id") is None:
            raise InputError(
                f"--tokenizer {tokenizer.name_or_path} has no {name}; give {option} false, or "
                "another tokenizer"
            )
    return DocumentFormat(
        text_key=text_key,
        beginning=(tokenizer.bos_token_id,) if prepend_bos else (),
        end=(tokenizer.eos_token_id,) if append_eod else (),
        drop_unreadable=unreadable == "drop",
    )


def _plan(
    files: Sequence[Path],
    tokenizer: Any,
    form: DocumentFormat,
    text_documents: TextDocuments,
    dtype: numpy.dtype,
) -> dict[str, Any]:
    """What decides about the bytes that are written, by the name of the option."""
    stats = [(str(file.absolute()), file.stat()) for file in files]
    described = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    pipeline = [vocabulary_digest(tokenizer), tokenizers.__version__]
    if tokenizer.is_fast:
        pipeline.append(tokenizer.backend_tokenizer.to_str())
    return {
        "input": hashlib.sha256(json.dumps(described).encode()).hexdigest(),
        "tokenizer": hashlib.sha256(json.dumps(pipeline).encode()).hexdigest(),
        "text_key": form.text_key,
        "text_documents": text_documents,
        "append_eod": list(form.end),
        "prepend_bos": list(form.beginning),
    }


def _worker_count(workers: int | None) -> int:
    if workers is not None and workers < 1:
        raise InputError(f"--workers is {workers}; it must be at least 1")
    return workers or len(os.sched_getaffinity(0))


def _encoded(
    shards: Iterator[Shard], tokenizer: Any, form: DocumentFormat, dtype: numpy.dtype, workers: int
) -> Generator[tuple[Shard, EncodedShard], None, None]:
    """Encodes shards in processes; yields them in their order, with few of them in memory."""
    # Forked, so that no process has to import and load the tokenizer again; this one has no
    # threads yet, because nothing has been read or tokenized.
    context = multiprocessing.get_context("fork")
    arguments = (tokenizer, form, dtype)
    with ProcessPoolExecutor(workers, context, start_worker, arguments) as pool:
        try:
            pool.submit(do_nothing).result()
            waiting: collections.deque[tuple[Shard, Future[EncodedShard]]] = collections.deque()
            for shard in shards:
                waiting.append((shard, pool.submit(encode_in_worker, shard)))
                while len(waiting) > _AHEAD * workers or (waiting and waiting[0][1].done()):
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise RunError(
                "a process that tokenizes was killed, as the system does when memory runs out; "
                "give the same command again to go on, with fewer --workers if memory is short"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write(
    unfinished: UnfinishedFiles,
    results: Generator[tuple[Shard, EncodedShard], None, None],
    files: Sequence[Path],
) -> None:
    began, earlier = time.monotonic(), unfinished.state.counts
    total = sum(file.stat().st_size for file in files)
    progress: ByteProgress | None = None
    with contextlib.closing(results), contextlib.ExitStack() as stack:
        for shard, encoded in results:
            unfinished.append(shard, encoded)
            if progress is None:
                progress = ByteProgress(total, start=shard.disk_bytes)
                stack.callback(progress.close)
            for complaint in encoded.complaints:
                progress.message(f"left out: {complaint}")
            counts = unfinished.state.counts
            speed = (counts.text_bytes - earlier.text_bytes) / (time.monotonic() - began) / 1e6
            headline = f"{counts.documents:,} documents, {counts.tokens:,} tokens, {speed:.1f} MB/s"
            progress.update(shard.disk_bytes, headline)


def _check_content(prefix: Path, counts: Counts, vocab_size: int) -> int:
    """Reads the files back; returns how many token ids were compared with the vocabulary."""
    try:
        facts = check_indexed_dataset(prefix, vocab_size)
    except InputError as error:
        raise RunError(f"what was written cannot be read back: {error}") from error
    if (facts.documents, facts.tokens) != (counts.documents, counts.tokens):
        raise RunError(
            f"{prefix} holds {facts.documents} documents of {facts.tokens} tokens instead of "
            f"{counts.documents} of {counts.tokens}; delete {prefix.parent} and begin anew"
        )
    return facts.ids_read


def _compare(
    prefix: Path,
    files: Sequence[Path],
    start: tuple[int, int],
    encoder: Encoder,
    form: DocumentFormat,
    text_documents: TextDocuments,
) -> int:
    """Tokenizes the first documents of a file again, one by one, and compares.

    Args:
        prefix: Of the token files.
        files: All input.
        start: Number of the file, and of its first document in the token files.
        encoder: See `Encoder.one`.
        form: How documents were made.
        text_documents: See `read_shards`.

    Returns:
        How many documents were equal.
    """
    file, document = start
    written = IndexedDataset(str(prefix))
    shard = next(read_shards(files, form.text_key, text_documents, Position(file)), None)
    texts = read_texts(shard, form.text_key, lambda error: None) if shard is not None else iter(())
    compared = 0
    for where, text in texts:
        ids = encoder.one(text) if text and not text.isspace() else []
        if not ids:
            continue
        found = written[document + compared].tolist()
        if found != [*form.beginning, *ids, *form.end]:
            raise RunError(
                f"document {document + compared} of {prefix} differs from the tokens of its text, "
                f"{where}; was the file changed meanwhile? Delete {prefix.parent} and begin anew"
            )
        compared += 1
        if compared == _COMPARED:
            break
    return compared
